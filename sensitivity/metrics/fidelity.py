"""The functions behind the metrics other than the Fréchet distance: kernel distance, PSNR, agreement, CLIP score and inception score.

Letters: n images, d pooled features, k classes or reference samples. All sums are float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from .bootstrap import Estimate, half_slices

MAX_PSNR = 100.0  # dB, reported for identical images, for JSON has no infinity; an error of 1e-5 a pixel
KID_SUBSETS = 20
KID_SUBSET_SHARE = 0.5  # of the images; subsets of 1,000 as in the paper are out of reach, for a probe has 512


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """(x·y/d + 1)³ of every pair."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def _unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of x (n, d) and y (m, d) under the kernel (x·y/d + 1)³."""

    def within(a: Tensor) -> Tensor:
        gram = _kernel(a, a)
        return (gram.sum() - gram.trace()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * _kernel(x, y).mean()


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


def kernel_estimate(features: Tensor, reference: Tensor, *, seed: int) -> Estimate:
    """The kernel distance as probes record it, from KID_SUBSETS subsets of half the images."""

    def distance(part: Tensor) -> tuple[float, float]:
        size = max(2, int(KID_SUBSET_SHARE * min(len(part), len(reference))))
        return kernel_distance(part, reference, n_subsets=KID_SUBSETS, subset_size=size, seed=seed)

    value, se = distance(features)
    first, second = half_slices(len(features))
    return Estimate(value, se, (distance(features[first])[0], distance(features[second])[0]))


class Kernel:
    """Kernel distance between all reference features and any resample of one set of features, from all images in place of subsets.

    An image that a resample holds twice counts as a pair with itself, which raises the distance; a difference of two sets has this in both.
    """

    def __init__(self, features: Tensor, reference: Tensor) -> None:
        x, y = features.detach().cpu().double(), reference.detach().cpu().double()
        self.gram, self.across = _kernel(x, x), _kernel(x, y).mean(dim=1)
        among = _kernel(y, y)
        self.within_reference = ((among.sum() - among.trace()) / (len(y) * (len(y) - 1))).item()

    def __call__(self, counts: Tensor) -> float:
        """Distance when image i occurs counts[i] times."""
        n = counts.sum()
        within = (counts @ self.gram @ counts - counts @ self.gram.diagonal()) / (n * (n - 1))
        return (within - 2 * counts @ self.across / n).item() + self.within_reference


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (n,) in dB of images (n, C, H, W) in [0, 1], at most MAX_PSNR."""
    error = (images.detach().cpu().double() - reference.detach().cpu().double()).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=10 ** (-MAX_PSNR / 10)).log10()


def squared_distances(features: Tensor, reference: Tensor) -> Tensor:
    """|f − r|² and |r|² of each pair, (n, 2) float64."""
    f, r = features.detach().cpu().double(), reference.detach().cpu().double()
    return torch.stack([(f - r).square().sum(dim=1), r.square().sum(dim=1)], dim=1)


def feature_distance(features: Tensor, reference: Tensor) -> Tensor:
    """|f − r|² of each pair (n,), over the mean |r|², so that it has no unit: 0 is equal, 1 is as wrong as f = 0."""
    return over_mean(squared_distances(features, reference))


def over_mean(squares: Tensor) -> Tensor:
    """The first column over the mean of the second, (n,) from (n, 2)."""
    distances, powers = squares.unbind(1)
    return distances / powers.mean().clamp(min=torch.finfo(torch.float64).tiny)


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
