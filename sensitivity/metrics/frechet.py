"""The Fréchet distance of features to a reference, with its spread over resampled images.

Letters: n images, d features. All sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...errors import InputError, SedaqError


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
