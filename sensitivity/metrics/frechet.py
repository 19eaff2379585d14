"""The Fréchet distance of features to a reference, with its spread over resampled images.

Letters: n images, d features. All sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...errors import InputError, SedaqError

LEAST_IMAGES_A_CONDITION = 8  # for the bootstrap to draw within conditions


class NotFiniteError(SedaqError):
    """Features of some images are not finite."""


@dataclass(frozen=True)
class Statistics:
    """Mean (d,) and centred scatter Σ (x−mean)(x−mean)ᵀ (d, d) of n feature vectors, float64; merged as in Chan et al. 1979.

    >>> both = Statistics.of(torch.zeros(2, 3)).merge(Statistics.of(torch.ones(2, 3)))
    >>> both.n, both.mean.tolist()
    (4, [0.5, 0.5, 0.5])
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Statistics of `features` (n, d). Raises NotFiniteError where a feature is not finite."""
        x = features.detach().cpu().double()
        if not x.isfinite().all():
            bad = int((~x.isfinite()).any(dim=1).sum())
            raise NotFiniteError(f"features of {bad} of {len(x)} images are not finite; the model overflows, give its layers more bits")
        mean = x.mean(dim=0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both sets together."""
        n, step = self.n + other.n, other.mean - self.mean
        mean = self.mean + step * (other.n / n)
        return Statistics(n, mean, self.scatter + other.scatter + torch.outer(step, step) * (self.n * other.n / n))

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (d, d). Raises InputError for fewer than two images."""
        if self.n < 2:
            raise InputError(f"a covariance needs at least 2 images, here is {self.n}; give more images")
        return self.scatter / (self.n - 1)

    @cached_property
    def root(self) -> Tensor:
        """Symmetric square root of the covariance (d, d)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _sum_of_roots(symmetric: Tensor) -> float:
    return torch.linalg.eigvalsh(symmetric).clamp(min=0).sqrt().sum().item()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|μa − μb|² + tr(A + B − 2 (A^½ B A^½)^½): Fréchet distance of two Gaussians, squared.

    Dowson & Landau 1982, eq. 4; on Inception features the FID of Heusel et al. 2017. The usual code takes the square root of the
    unsymmetric A·B; the symmetric product has the same eigenvalues, and they stay real and non-negative.
    """
    root = a.root
    cross = _sum_of_roots(root @ b.covariance @ root)
    return max(0.0, ((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()).item() - 2 * cross)


class Resampled:
    """Fréchet distance between a reference and any resample of one set of features.

    tr (A^½ B A^½)^½ is the nuclear norm of (x − mean) A^½ / √(n−1), so A^½ is applied once; per resample there remains an eigenvalue
    problem of order min(n, d): 2 ms for n = 512, d = 128 on one core.
    """

    def __init__(self, features: Tensor, reference: Statistics) -> None:
        self.offsets = features.detach().cpu().double() - reference.mean  # (n, d)
        self.squared_norms = self.offsets.square().sum(dim=1)
        self.trace = reference.covariance.trace().item()
        self.projected = self.offsets @ reference.root
        if len(self.projected) < self.projected.shape[1]:  # same Gram matrix in n columns
            values, vectors = torch.linalg.eigh(self.projected @ self.projected.T)
            self.projected = vectors * values.clamp(min=0).sqrt()

    def __call__(self, counts: Tensor) -> float:
        """Distance when image i occurs counts[i] times."""
        n = counts.sum()
        offset = counts @ self.offsets / n
        trace = (counts @ self.squared_norms - n * offset.square().sum()) / (n - 1)
        y = (self.projected - counts @ self.projected / n) * counts.sqrt().unsqueeze(1)
        cross = _sum_of_roots(y.T @ y / (n - 1))
        return max(0.0, (offset.square().sum() + trace).item() + self.trace - 2 * cross)


def resamples(n: int, n_bootstrap: int, seed: int, cycle: int) -> Tensor:
    """How often each of n images occurs in each resample, (n_bootstrap, n) float64; image i is replaced by one of equal i mod `cycle`.

    Every set of images holds the conditions in equal parts, so resamples must too: without it the error is two to three times the spread over sets
    on mnist-dit (docs/experiments/probing-and-predictor.md).
    """
    rng = torch.Generator().manual_seed(seed)
    if n < LEAST_IMAGES_A_CONDITION * cycle:  # too few to draw from: the error is then on the safe side
        cycle = 1
    condition = torch.arange(n) % cycle
    n_alike = (n - 1 - condition) // cycle + 1
    drawn = condition + cycle * (torch.rand(n_bootstrap, n, generator=rng, dtype=torch.float64) * n_alike).long()
    return torch.zeros(n_bootstrap, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(n_bootstrap, n, dtype=torch.float64))


def frechet_difference(
    features_a: Tensor, features_b: Tensor, reference: Statistics, *, cycle: int = 1, n_bootstrap: int = 200, seed: int = 0
) -> tuple[float, float, float]:
    """Fréchet distance of a minus that of b, with a 95 % interval from a bootstrap over images that are paired by their noise.

    A resample holds fewer distinct images than the sample and so lies farther from the reference; the percentiles are therefore taken
    about the bootstrap mean. The interval is for the difference at this n, not for infinitely many images. It is right for d ≪ n and
    too wide for d near n: by 1.3 for n = 512, d = 128 on MNIST, against the spread over 24 disjoint sets of images.

    Args:
        features_a, features_b: (n, d); image i of both was sampled from the same noise.
        cycle: number of conditions; image i has condition i mod cycle.

    Returns:
        difference, low, high.
    """
    if features_a.shape != features_b.shape:
        raise InputError(f"paired features have shapes {tuple(features_a.shape)} and {tuple(features_b.shape)}; sample both alike")
    a, b = Resampled(features_a, reference), Resampled(features_b, reference)
    once = torch.ones(len(features_a), dtype=torch.float64)
    difference = a(once) - b(once)
    drawn = torch.tensor([a(counts) - b(counts) for counts in resamples(len(once), n_bootstrap, seed, cycle)], dtype=torch.float64)
    low, high = torch.quantile(drawn - drawn.mean(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return difference, difference + low, difference + high


def half_slices(n: int) -> tuple[slice, slice]:
    """The first and the second half of n images. Conditions cycle over the images, so both hold all of them; even and odd images would not."""
    return slice(0, n // 2), slice(n // 2, n)


def frechet_distances(features: Tensor, reference: Statistics, counts: Tensor) -> Tensor:
    """Distance of all images, of the first half, of the second, and of each resample."""
    distance = Resampled(features, reference)
    first = torch.zeros(len(features), dtype=torch.float64)
    first[half_slices(len(features))[0]] = 1
    return torch.tensor([distance(row) for row in (torch.ones_like(first), first, 1 - first, *counts)], dtype=torch.float64)
