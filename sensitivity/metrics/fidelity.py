"""How far sampled images are from a reference: Fréchet and kernel distances, agreement, PSNR, with standard errors.

Letters: n images, d pooled features, k classes or reference samples. All sums are float64. Distances are lower-is-better; agreement,
PSNR and the inception score are higher-is-better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from .frechet import Statistics, frechet_distances, half_slices, resamples
from .inception import N_CLASSES as INCEPTION_CLASSES

HIGHER_IS_BETTER = frozenset({"agreement", "clip_score", "psnr", "inception_score"})
MAX_PSNR = 100.0  # dB, reported for identical images, for JSON has no infinity; an error of 1e-5 a pixel
KID_SUBSETS = 20
KID_SUBSET_SHARE = 0.5  # of the images; subsets of 1,000 as in the paper are out of reach, for a probe has 512


@dataclass(frozen=True)
class Features:
    """What an extractor says about n images.

    pooled (n, d) float32; spatial (n, d'), logits (n, k) and embeddings (n, p), which stand in one space with prompts', or None.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None
    embeddings: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index: slice | Tensor) -> Features:
        """The images that `index` picks."""
        return self.map(lambda x: x[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Features:
        """What there is, changed."""
        others = (None if x is None else change(x) for x in (self.spatial, self.logits, self.embeddings))
        return Features(change(self.pooled), *others)

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """All images of `parts` in order."""

        def join(name: str) -> Tensor | None:
            tensors = [getattr(part, name) for part in parts]
            return None if tensors[0] is None else torch.cat(tensors)

        return Features(torch.cat([part.pooled for part in parts]), join("spatial"), join("logits"), join("embeddings"))


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


def clip_score(images: Tensor, prompts: Tensor) -> Tensor:
    """100 max(cos, 0) between embeddings of images and of the prompts that they were made from, (n, p) each → (n,).

    Hessel et al. 2021, eq. 1, with weight 100, which diffusion papers print, in place of 2.5.
    """
    return 100 * functional.cosine_similarity(images.double(), prompts.double()).clamp(min=0)


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL(p(y|x) ‖ p(y)) of logits (n, k): Salimans et al. 2016, over all images at once instead of ten splits."""
    log_p = logits.detach().cpu().double().log_softmax(dim=1)
    marginal = log_p.exp().mean(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    return (log_p.exp() * (log_p - marginal.log())).sum(dim=1).mean().exp().item()


def _mean(values: Tensor) -> Metric:
    first, second = half_slices(len(values))
    return Metric(
        values.mean().item(), (values.std() / len(values) ** 0.5).item(), (values[first].mean().item(), values[second].mean().item())
    )


@dataclass(frozen=True)
class FullPrecision:
    """Images of the full-precision model and their features, to be compared with others from the same noise."""

    images: Tensor
    features: Features
    _known: dict[Any, Tensor] = field(default_factory=dict)

    def distances(self, reference: Statistics, *resampling: int) -> Tensor:
        """What _frechet gives, computed once for all plans that are compared with it; `resampling` is what resamples takes after n."""
        key = (id(reference), *resampling)
        if key not in self._known:
            self._known[key] = frechet_distances(self.features.pooled, reference, resamples(len(self.features), *resampling))
        return self._known[key]


def _resampled_metric(values: Tensor) -> Metric:
    """From what _frechet gives, or from a difference of two such."""
    return Metric(values[0].item(), values[3:].std().item(), (values[1].item(), values[2].item()))


def _kernel(features: Tensor, reference: Tensor, seed: int) -> Metric:
    def distance(part: Tensor) -> tuple[float, float]:
        size = max(2, int(KID_SUBSET_SHARE * min(len(part), len(reference))))
        return kernel_distance(part, reference, n_subsets=KID_SUBSETS, subset_size=size, seed=seed)

    value, se = distance(features)
    first, second = half_slices(len(features))
    return Metric(value, se, (distance(features[first])[0], distance(features[second])[0]))


def _score(logits: Tensor, counts: Tensor) -> Metric:
    logits = logits.cpu()
    drawn = [inception_score(logits.repeat_interleave(row.long(), dim=0)) for row in counts]
    first, second = half_slices(len(logits))
    both = inception_score(logits[first]), inception_score(logits[second])
    return Metric(inception_score(logits), torch.tensor(drawn, dtype=torch.float64).std().item(), both)


def measure(
    features: Features,
    images: Tensor,
    *,
    reference: Reference,
    requested: Tensor | None = None,
    full_precision: FullPrecision | None = None,
    cycle: int = 1,
    seed: int,
    n_bootstrap: int = 20,
) -> dict[str, Metric]:
    """Every metric that the inputs allow.

    Args:
        features: of `images` (n, C, H, W) in [0, 1], n at least 4.
        reference: statistics of the same extractor's features.
        requested: what was asked for: (n,) classes, which give `agreement` if the extractor classifies the subject's own classes; or (n, p)
            embeddings of the prompts, which give `clip_score`.
        full_precision: of the same noise; gives `psnr`, `feature_distance`
            and `fid_excess`.
        cycle: number of conditions; image i has condition i mod cycle.
        seed: of the bootstrap (fid, sfid, inception_score) and of the subsets (kid).

    Returns:
        by name, of fid, fid_excess, sfid, kid, agreement, clip_score, inception_score, psnr, feature_distance. `fid_excess` is `fid` less that of full
        precision on the same noise: a Fréchet distance's bias in n is much the same in both, and so is most of its noise. `fid` is in the
        features of whichever extractor was used; sfid (Nash et al. 2021) and inception_score exist for Inception features only. The
        bootstrap's se of fid is 1.0 to 1.1 times the true spread for n = 512, d = 128.
    """
    if len(features) < 4 or len(features) != len(images):
        raise InputError(f"{len(images)} images and {len(features)} feature vectors; fidelity needs at least 4 images and as many features")
    if not features.pooled.isfinite().all():
        Statistics.of(features.pooled)  # raises and says how many
    counts = resamples(len(features), n_bootstrap, seed, cycle)
    distances = frechet_distances(features.pooled, reference.statistics, counts)
    metrics = {"fid": _resampled_metric(distances)}
    if features.spatial is not None and reference.spatial is not None:
        metrics["sfid"] = _resampled_metric(frechet_distances(features.spatial, reference.spatial, counts))
    if reference.features is not None:
        metrics["kid"] = _kernel(features.pooled, reference.features, seed)
    if features.logits is not None and features.logits.shape[1] == INCEPTION_CLASSES:
        metrics["inception_score"] = _score(features.logits, counts)
    elif features.logits is not None and requested is not None and requested.ndim == 1:
        metrics["agreement"] = _mean(agreement(features.logits, requested))
    if features.embeddings is not None and requested is not None and requested.ndim == 2:
        metrics["clip_score"] = _mean(clip_score(features.embeddings, requested))
    if full_precision is not None:
        metrics["fid_excess"] = _resampled_metric(distances - full_precision.distances(reference.statistics, n_bootstrap, seed, cycle))
        metrics["psnr"] = _mean(psnr(images, full_precision.images))
        metrics["feature_distance"] = _mean(feature_distance(features.pooled, full_precision.features.pooled))
    return metrics
