"""What metrics look at: sampled images, their features, and what they are held against."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import InputError
from .frechet import Statistics

MIN_IMAGES = 4


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

    def refuse_others(self, features: Features) -> None:
        """Raise InputError for features of another length than it was made of, as those of videos are beside those of images."""
        width, expected = features.pooled.shape[1], len(self.statistics.mean)
        if width != expected:
            raise InputError(
                f"`reference`: {self.description}, has {expected} features where the model's have {width}; those of a video are of its frames and of "
                "how they move, so leave `reference` out for videos"
            )


@dataclass(frozen=True)
class Sample:
    """n sampled images, at least 4, and what metrics may hold them against.

    Args:
        images: (n, C, H, W) in [0, 1]; features: of these images.
        reference: statistics of the same extractor's features.
        requested: what was asked for: (n,) classes, or (n, p) embeddings of the prompts.
        full_precision: images of the full-precision model from the same noise.
        cycle: number of conditions; image i has condition i mod cycle.

    Raises:
        InputError: for fewer images, another number of features, and features of another length than the reference's.
        NotFiniteError: for features that are not finite.
    """

    images: Tensor
    features: Features
    reference: Reference
    requested: Tensor | None = None
    full_precision: Sample | None = None
    cycle: int = 1
    known: dict[Hashable, Tensor] = field(default_factory=dict, repr=False, compare=False)  # for full precision, which many samples share

    def __post_init__(self) -> None:
        if len(self.features) < MIN_IMAGES or len(self.features) != len(self.images):
            raise InputError(
                f"{len(self.images)} images and {len(self.features)} feature vectors; fidelity needs at least {MIN_IMAGES} images and as many features"
            )
        self.reference.refuse_others(self.features)
        if not self.features.pooled.isfinite().all():
            Statistics.of(self.features.pooled)  # raises and says how many

    def __len__(self) -> int:
        return len(self.features)
