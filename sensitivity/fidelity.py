"""How far sampled images are from a reference: Fréchet and kernel distances, agreement, PSNR, with standard errors.

Letters: n images, d pooled features, k classes or reference samples. All sums are float64. Distances are lower-is-better; agreement,
PSNR and the inception score are higher-is-better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, SedaqError
from .inception import N_CLASSES as INCEPTION_CLASSES

MAX_PSNR = 100.0  # dB, reported for identical images, for JSON has no infinity; an error of 1e-5 a pixel
LEAST_IMAGES_A_CONDITION = 8  # for the bootstrap to draw within conditions
KID_SUBSETS = 20
KID_SUBSET_SHARE = 0.5  # of the images; subsets of 1,000 as in the paper are out of reach, for a probe has 512


@dataclass(frozen=True)
class Features:
    """What an extractor says about n images.

    pooled (n, d) float32; spatial (n, d') or None; logits (n, k) or None.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index: slice | Tensor) -> Features:
        """The images that `index` picks."""
        spatial, logits = (None if x is None else x[index] for x in (self.spatial, self.logits))
        return Features(self.pooled[index], spatial, logits)

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """All images of `parts` in order."""

        def join(name: str) -> Tensor | None:
            tensors = [getattr(part, name) for part in parts]
            return None if tensors[0] is None else torch.cat(tensors)

        return Features(torch.cat([part.pooled for part in parts]), join("spatial"), join("logits"))


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


@dataclass(frozen=True)
class Reference:
    """What sampled images are compared with.

    statistics of the pooled features; features (k, d), a sample of them for the kernel distance; spatial: statistics of the spatial
    features; fingerprint: changes with the images and with the extractor.
    """

    statistics: Statistics
    features: Tensor | None
    spatial: Statistics | None
    description: str
    fingerprint: str


@dataclass(frozen=True)
class Metric:
    """A value, its standard error, and the metric on the first and on the second half of the images."""

    value: float
    se: float
    halves: tuple[float, float]

    @classmethod
    def undefined(cls) -> Metric:
        """Of images that are not finite."""
        return cls(math.nan, math.nan, (math.nan, math.nan))

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: null."""
        value, se, *halves = (x if math.isfinite(x) else None for x in (self.value, self.se, *self.halves))
        return {"value": value, "se": se, "halves": halves}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Metric:
        value, se, first, second = (math.nan if x is None else x for x in (content["value"], content["se"], *content["halves"]))
        return cls(value, se, (first, second))


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


class _Resampled:
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


def _resamples(n: int, n_bootstrap: int, seed: int, cycle: int) -> Tensor:
    """How often each of n images occurs in each resample, (n_bootstrap, n) float64; image i is replaced by one of equal i mod `cycle`.

    Every set of images holds the conditions in equal parts, so resamples must too: without it the error is 2.6 times the spread over sets
    on mnist-dit (docs/experiments.md).
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
    a, b = _Resampled(features_a, reference), _Resampled(features_b, reference)
    once = torch.ones(len(features_a), dtype=torch.float64)
    difference = a(once) - b(once)
    drawn = torch.tensor([a(counts) - b(counts) for counts in _resamples(len(once), n_bootstrap, seed, cycle)], dtype=torch.float64)
    low, high = torch.quantile(drawn - drawn.mean(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return difference, difference + low, difference + high


def _unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of x (n, d) and y (m, d) under the kernel (x·y/d + 1)³."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        gram = kernel(a, a)
        return (gram.sum() - gram.trace()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def kernel_distance(x: Tensor, y: Tensor, *, n_subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """KID of Bińkowski et al. 2018: mean over random subsets of the unbiased squared MMD, cubic polynomial kernel.

    It has no bias in n, may be negative, and its cost does not grow with n.

    Args:
        x: (n, d) features; y: (k, d) features.
        subset_size: images of each side in one subset, at least 2 and at most min(n, k).

    Returns:
        value and standard error. Subsets overlap when n_subsets · subset_size > n and then add no independent evidence, so the spread
        over subsets is scaled by √max(1/n_subsets, subset_size/min(n, k)); the paper reports the spread itself. Where both sides agree,
        the spread falls faster than 1/√subset_size, and the error so scaled is too wide by up to √(n/subset_size).
    """
    fewest = min(len(x), len(y))
    if not 2 <= subset_size <= fewest or n_subsets < 2:
        raise InputError(f"kernel distance: {n_subsets} subsets of {subset_size} from {fewest} images; at least 2 subsets of 2 to {fewest}")
    rng = torch.Generator().manual_seed(seed)
    x, y = x.detach().cpu().double(), y.detach().cpu().double()

    def subset(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=rng)[:subset_size]]

    values = torch.stack([_unbiased_mmd(subset(x), subset(y)) for _ in range(n_subsets)])
    return values.mean().item(), values.std().item() * max(1 / n_subsets, subset_size / fewest) ** 0.5


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (n,) in dB of images (n, C, H, W) in [0, 1], at most MAX_PSNR."""
    error = (images.detach().cpu().double() - reference.detach().cpu().double()).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=10 ** (-MAX_PSNR / 10)).log10()


def feature_distance(features: Tensor, reference: Tensor) -> Tensor:
    """|f − r|² of each pair (n,), over the mean |r|², so that it has no unit: 0 is equal, 1 is as wrong as f = 0."""
    f, r = features.detach().cpu().double(), reference.detach().cpu().double()
    return (f - r).square().sum(dim=1) / r.square().sum(dim=1).mean().clamp(min=torch.finfo(torch.float64).tiny)


def agreement(logits: Tensor, requested: Tensor) -> Tensor:
    """1.0 where the classifier sees the requested class, else 0.0: (n,) from logits (n, k) and requested (n,)."""
    return (logits.argmax(dim=1).cpu() == requested.cpu()).double()


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL(p(y|x) ‖ p(y)) of logits (n, k): Salimans et al. 2016, over all images at once instead of ten splits."""
    log_p = logits.detach().cpu().double().log_softmax(dim=1)
    marginal = log_p.exp().mean(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    return (log_p.exp() * (log_p - marginal.log())).sum(dim=1).mean().exp().item()


def _halves(n: int) -> tuple[slice, slice]:
    """The first and the second half of n images. Conditions cycle over the images, so both hold all of them; even and odd images would not."""
    return slice(0, n // 2), slice(n // 2, n)


def _mean(values: Tensor) -> Metric:
    first, second = _halves(len(values))
    return Metric(
        values.mean().item(), (values.std() / len(values) ** 0.5).item(), (values[first].mean().item(), values[second].mean().item())
    )


def _frechet(features: Tensor, reference: Statistics, counts: Tensor) -> Tensor:
    """Distance of all images, of the first half, of the second, and of each resample."""
    distance = _Resampled(features, reference)
    first = torch.zeros(len(features), dtype=torch.float64)
    first[_halves(len(features))[0]] = 1
    return torch.tensor([distance(row) for row in (torch.ones_like(first), first, 1 - first, *counts)], dtype=torch.float64)


def _resampled_metric(values: Tensor) -> Metric:
    """From what _frechet gives, or from a difference of two such."""
    return Metric(values[0].item(), values[3:].std().item(), (values[1].item(), values[2].item()))


def _kernel(features: Tensor, reference: Tensor, seed: int) -> Metric:
    def distance(part: Tensor) -> tuple[float, float]:
        size = max(2, int(KID_SUBSET_SHARE * min(len(part), len(reference))))
        return kernel_distance(part, reference, n_subsets=KID_SUBSETS, subset_size=size, seed=seed)

    value, se = distance(features)
    first, second = _halves(len(features))
    return Metric(value, se, (distance(features[first])[0], distance(features[second])[0]))


def _score(logits: Tensor, counts: Tensor) -> Metric:
    logits = logits.cpu()
    drawn = [inception_score(logits.repeat_interleave(row.long(), dim=0)) for row in counts]
    first, second = _halves(len(logits))
    halves = inception_score(logits[first]), inception_score(logits[second])
    return Metric(inception_score(logits), torch.tensor(drawn, dtype=torch.float64).std().item(), halves)


def measure(
    features: Features,
    images: Tensor,
    *,
    reference: Reference,
    requested: Tensor | None = None,
    full_precision: tuple[Tensor, Features] | None = None,
    cycle: int = 1,
    seed: int,
    n_bootstrap: int = 20,
) -> dict[str, Metric]:
    """Every metric that the inputs allow.

    Args:
        features: of `images` (n, C, H, W) in [0, 1], n at least 4.
        reference: statistics of the same extractor's features.
        requested: (n,) classes that were asked for; gives `agreement` if the extractor classifies the subject's own classes.
        full_precision: images from the same noise by the full-precision model and their features; gives `psnr`, `feature_distance`
            and `fid_excess`.
        cycle: number of conditions; image i has condition i mod cycle.
        seed: of the bootstrap (fid, sfid, inception_score) and of the subsets (kid).

    Returns:
        by name, of fid, fid_excess, sfid, kid, agreement, inception_score, psnr, feature_distance. `fid_excess` is `fid` less that of full
        precision on the same noise: a Fréchet distance's bias in n is much the same in both, and so is most of its noise. `fid` is in the
        features of whichever extractor was used; sfid (Nash et al. 2021) and inception_score exist for Inception features only. The
        bootstrap's se of fid is 1.0 to 1.1 times the true spread for n = 512, d = 128.
    """
    if len(features) < 4 or len(features) != len(images):
        raise InputError(f"{len(images)} images and {len(features)} feature vectors; fidelity needs at least 4 images and as many features")
    if not features.pooled.isfinite().all():
        Statistics.of(features.pooled)  # raises and says how many
    counts = _resamples(len(features), n_bootstrap, seed, cycle)
    distances = _frechet(features.pooled, reference.statistics, counts)
    metrics = {"fid": _resampled_metric(distances)}
    if features.spatial is not None and reference.spatial is not None:
        metrics["sfid"] = _resampled_metric(_frechet(features.spatial, reference.spatial, counts))
    if reference.features is not None:
        metrics["kid"] = _kernel(features.pooled, reference.features, seed)
    if features.logits is not None and features.logits.shape[1] == INCEPTION_CLASSES:
        metrics["inception_score"] = _score(features.logits, counts)
    elif features.logits is not None and requested is not None:
        metrics["agreement"] = _mean(agreement(features.logits, requested))
    if full_precision is not None:
        metrics["fid_excess"] = _resampled_metric(distances - _frechet(full_precision[1].pooled, reference.statistics, counts))
        metrics["psnr"] = _mean(psnr(images, full_precision[0]))
        metrics["feature_distance"] = _mean(feature_distance(features.pooled, full_precision[1].pooled))
    return metrics
