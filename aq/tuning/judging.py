"""Whether tuning made images better. A held-out loss does not tell where a denoiser has lost so much that it answers averages.

A few images of the full-precision model, of the quantized one and of the tuned one, on equal noise. What is compared is how patches of their Laplacian
pyramids are distributed, by the sliced Wasserstein distance (Karras et al. 2018, Progressive Growing of GANs, section 5), which needs no trained features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn import functional as F

from ...models.noise import purpose_seed
from ...models.subject import Subject
from ...models.trace import Recording
from .run import or_infinity
from .tuned import Tuned

WORSE = 1.1  # times the distance before tuning; nearly lossless models differ by less from one tuning to the next
PATCH, N_PATCHES, N_DIRECTIONS = 7, 64, 256  # side; of each image and level; on which patches are projected
LEAST_SIDE = 16  # of a level of the pyramid that is made smaller


def images_got_worse(subject: Subject, untuned: Tuned, tuned: Tuned, recording: Recording, n_images: int) -> str:
    """What there is to say where images of the tuned model are farther from full precision's than those of the untuned one; "" where they are not.

    Args:
        recording: how the trajectories that were learned from are sampled; images are sampled likewise, from other noise.
        n_images: at most; no more than were learned from.
    """
    n_images, seed = min(n_images, recording.n_images), purpose_seed(recording.seed, "tune images")

    def images(state: AbstractContextManager[None]) -> torch.Tensor:
        with state:
            return subject.sample(recording.sampling, seed=seed, n_images=n_images, may_overflow=True)

    full = images(nullcontext())
    before, after = (or_infinity(patch_distance(full, images(model.installed(subject)))) for model in (untuned, tuned))
    if after <= WORSE * before:
        return ""
    return (
        f"images got worse ({before:.3g} to {after:.3g} from full precision's) while the held-out loss fell, so what came in is handed out"
    )


def patch_distance(images: torch.Tensor, others: torch.Tensor, seed: int = 0) -> float:
    """Mean over levels of the sliced Wasserstein distance of patches, in standard deviations of the patches of `images`.

    Args:
        images, others: as many, (n, C, H, W) or (n, frames, C, H, W), in [0, 1].
    """
    rng = torch.Generator().manual_seed(seed)
    distances = []
    for level, other in zip(_pyramid(_as_images(images)), _pyramid(_as_images(others)), strict=True):
        places = _places(level, rng)
        patches, other_patches = _patches(level, places), _patches(other, places)
        mean, deviation = patches.mean((0, 2), keepdim=True), patches.std((0, 2), keepdim=True).clamp(min=1e-6)
        directions = F.normalize(torch.randn(patches[0].numel(), N_DIRECTIONS, generator=rng), dim=0)
        projected, other_projected = (
            (((p - mean) / deviation).flatten(1) @ directions).sort(dim=0).values for p in (patches, other_patches)
        )
        distances.append((projected - other_projected).abs().mean())
    return float(torch.stack(distances).mean())


def _as_images(samples: torch.Tensor) -> torch.Tensor:
    return samples.detach().float().cpu().flatten(0, -4)


def _pyramid(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """What each size holds that the next smaller one does not; then the smallest one."""
    while min(images.shape[-2:]) >= LEAST_SIDE:
        smaller = F.avg_pool2d(images, 2, ceil_mode=True)
        yield images - F.interpolate(smaller, images.shape[-2:], mode="bilinear")
        images = smaller
    yield images


def _places(images: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Indices of N_PATCHES random patches of every image: (patches, 1, 1) of the image, (patches, side, 1) of rows and (patches, 1, side) of columns."""
    height, width = images.shape[-2:]
    n, (tall, wide) = len(images) * N_PATCHES, (min(PATCH, height), min(PATCH, width))
    rows = torch.randint(height - tall + 1, (n, 1, 1), generator=rng) + torch.arange(tall)[:, None]
    columns = torch.randint(width - wide + 1, (n, 1, 1), generator=rng) + torch.arange(wide)
    return torch.arange(len(images)).repeat_interleave(N_PATCHES)[:, None, None], rows, columns


def _patches(images: torch.Tensor, places: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(patches, C, rows × columns)"""
    image, rows, columns = places
    return images.permute(0, 2, 3, 1)[image, rows, columns].flatten(1, 2).transpose(1, 2)
