"""What sampled images are compared with: real images from a folder or an array, stored statistics, or what ships with sedaq."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError
from ...models.images import BATCH_SIZE, image_batches
from ...models.noise import purpose_seed
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...progress import track
from ...records import REMADE
from ...runtime.tasks import as_damage
from ...storage import fingerprint, load_tensors, save_tensors
from .extractors import Extractor
from .frechet import Statistics
from .sample import Features, Reference

__all__ = ["Reference", "build_reference", "load_reference", "load_statistics", "sampled_reference", "save_reference", "shipped_reference"]

SHIPPED = Path(__file__).parents[2] / "models" / "shipped" / "reference"
REFERENCE_IMAGES = 2000  # full-precision images where no reference is given and nothing is said of their number
N_FEATURES = 1000  # kept for the kernel distance
_KIND = "reference"


class _Sample:
    """A uniform sample of rows from a stream: those with the N_FEATURES smallest of keys drawn from a fixed seed."""

    def __init__(self) -> None:
        self.rng = torch.Generator().manual_seed(0)
        self.keys = torch.empty(0)
        self.rows = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        keys = torch.cat([self.keys, torch.rand(len(rows), generator=self.rng)])
        kept = keys.argsort()[:N_FEATURES]
        self.rows = torch.cat([self.rows, rows])[kept] if len(self.rows) else rows[kept]
        self.keys = keys[kept]


def build_reference(batches: Iterable[Tensor], extractor: Extractor, *, description: str, identity: str) -> Reference:
    """Statistics of the images in `batches`, each (b, C, H, W) in [0, 1].

    The sampled features are rounded to float16, as they are stored, so that a reference is the same before and after saving.

    Args:
        identity: of the images; the extractor's is added to it.
    """
    pooled: Statistics | None = None
    spatial: Statistics | None = None
    sample = _Sample()
    for batch in batches:
        features: Features = extractor(batch)
        part = Statistics.of(features.pooled)
        pooled = part if pooled is None else pooled.merge(part)
        if features.spatial is not None:
            part = Statistics.of(features.spatial)
            spatial = part if spatial is None else spatial.merge(part)
        sample.add(features.pooled)
    if pooled is None or pooled.n < 2:
        raise InputError(f"{description}: {0 if pooled is None else pooled.n} images; a reference needs at least 2, better thousands")
    return Reference(pooled, sample.rows.half().float(), spatial, description, _combined(identity, extractor))


def sampled_reference(
    subject: Subject, sampling: SamplingConfig, extractor: Extractor, seed: int, n_images: int = REFERENCE_IMAGES
) -> Reference:
    """Of `n_images` full-precision images, on noise that no measurement has: where there are no real ones."""
    noise = purpose_seed(seed, "reference")
    batches = (
        subject.sample(sampling, seed=noise, start=i, n_images=min(100, n_images - i))
        for i in track(range(0, n_images, 100), "reference: full-precision images with other noise")
    )
    identity = fingerprint([subject.fingerprint, extractor.fingerprint, noise, sampling.steps, sampling.identity, n_images])
    description = f"{n_images} full-precision images made with other noise"
    return build_reference(batches, extractor, description=description, identity=identity)


def _combined(images: str, extractor: Extractor) -> str:
    return hashlib.sha256(f"{images} {extractor.fingerprint}".encode()).hexdigest()[:16]


def save_reference(path: str | Path, reference: Reference, extractor: Extractor, owner: Mapping[str, str] | None = None) -> None:
    """Write a statistics file (safetensors): mean and scatter float64, sampled features float16; and whose it is."""
    tensors = {"mean": reference.statistics.mean, "scatter": reference.statistics.scatter}
    if reference.features is not None:
        tensors["features"] = reference.features.half()
    if reference.spatial is not None:
        tensors |= {"spatial_mean": reference.spatial.mean, "spatial_scatter": reference.spatial.scatter}
    metadata = {
        "n_images": reference.statistics.n,
        "description": reference.description,
        "fingerprint": reference.fingerprint,
        "extractor": {"name": extractor.name, "fingerprint": extractor.fingerprint},
        **(owner or {}),
    }
    save_tensors(Path(path), _KIND, tensors, metadata)


def load_statistics(path: Path, extractor: Extractor, owner: Mapping[str, str] | None = None, remedy: str = REMADE) -> Reference:
    """The reference that save_reference wrote. Raises InputError for a file that is missing, or made by another extractor; DamagedError as storage.load_tensors."""
    tensors, metadata = load_tensors(path, _KIND, owner=owner, remedy=remedy)
    made_by = metadata["extractor"]
    if made_by["fingerprint"] != extractor.fingerprint:
        raise InputError(
            f"{path}: made by extractor {made_by['name']} ({made_by['fingerprint']}), not by {extractor.name} ({extractor.fingerprint}); "
            "choose that extractor, or make the statistics again from images"
        )
    n = metadata["n_images"]
    with as_damage(path):
        spatial = _statistics(n, tensors["spatial_mean"], tensors["spatial_scatter"]) if "spatial_mean" in tensors else None
        statistics = _statistics(n, tensors["mean"], tensors["scatter"])
        features = tensors["features"].float() if "features" in tensors else None
        if features is not None and features.shape[1:] != statistics.mean.shape:
            raise InputError("its features are not those of its statistics")
    return Reference(statistics, features, spatial, metadata["description"], metadata["fingerprint"])


def _statistics(n: int, mean: Tensor, scatter: Tensor) -> Statistics:
    if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)) or not mean.is_floating_point() or not scatter.is_floating_point():
        raise InputError("its mean and scatter are of different sizes")
    return Statistics(n, mean, scatter)


def _from_images(path: Path, extractor: Extractor, image_shape: tuple[int, ...]) -> Reference:
    n_images, batches = image_batches(path, image_shape)
    digest = hashlib.sha256()

    def scaled() -> Iterator[Tensor]:
        for batch in batches:
            digest.update(batch.contiguous().numpy().tobytes())
            yield batch.float() / 255

    n_batches = -(-n_images // BATCH_SIZE)
    reference = build_reference(
        track(scaled(), "reference images", n_batches), extractor, description=f"{n_images} images of {path}", identity=""
    )
    return replace(reference, fingerprint=_combined(digest.hexdigest(), extractor))  # known once all pixels have been read


def load_reference(
    spec: str | Path | None,
    extractor: Extractor,
    *,
    image_shape: tuple[int, ...],
    default: Callable[[], Reference] | None = None,
) -> Reference:
    """The reference that the user names.

    Args:
        spec: folder of images (png, jpg, webp, at any depth), .npz with one uint8 array of images, or a statistics file that
            save_reference wrote; None for the default.
        image_shape: (C, H, W) of the model's images; reference images must have it, for resizing changes every metric.
        default: makes the reference when spec is None, for example from full-precision images.

    Raises:
        InputError: nothing there, images of another shape, or statistics made by another extractor.
    """
    if spec is None:
        if default is None:
            raise InputError("no reference given; name a folder of images, an .npz or a statistics file")
        return default()
    path = Path(spec).expanduser()
    if path.suffix == ".safetensors" and not path.is_dir():
        return load_statistics(path, extractor, remedy="make the statistics again from images, or name another reference")
    if not path.is_dir() and path.suffix != ".npz":
        raise InputError(f"{path}: no reference there; name a folder of images, an .npz or a .safetensors statistics file")
    return _from_images(path, extractor, tuple(image_shape))


def shipped_reference(split: Literal["train", "test"], extractor: Extractor) -> Reference:
    """Statistics of MNIST's training or test images in the features of the embedded extractor."""
    return load_statistics(SHIPPED / f"{split}.safetensors", extractor)
