"""Measure the images of one subject, full-precision or quantized: the verb `evaluate`.

Images are sampled and looked at by chunks. What metrics take of a chunk is kept until the evaluation is done, so that one that was stopped goes on;
an evaluation of the same files is read back.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..aq.modules.layers import densify, quantized_modules
from ..errors import InputError
from ..kernels.timing import clock
from ..models.file_hashes import hashes_of
from ..models.loading import load
from ..models.noise import purpose_seed
from ..models.sampling import SamplingConfig, conditions_of, split_images
from ..models.subject import Subject
from ..progress import track
from ..runtime.owner import artifact
from ..runtime.tasks import Task, json_task, tensor_task
from ..storage import cache_folder, fingerprint, load_tensors, save_tensors
from .metrics.extractors import CHOICES, Extractor, load_extractor
from .metrics.reference import load_reference, load_statistics, sampled_reference, save_reference, shipped_reference
from .metrics.registry import evidence_of, measure_evidence
from .metrics.sample import MIN_IMAGES, Reference, Sample

CHUNK = 256  # images that are in memory at once
FULL = "full/"  # before the names of what is of full precision
VERSION = 1  # of what evaluations compute: those of another are not read back


@dataclass(frozen=True)
class EvaluationResult:
    """The images of a model, measured."""

    metrics: Mapping[str, Mapping[str, Any]]  # by name: value, se (standard error), halves
    n_images: int
    steps: int | None
    seed: int
    extractor: str
    reference: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What the verb `evaluate` prints as JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def evaluate(
    subject: str | Path | Subject,
    *,
    against: str | Path | Subject | None = None,
    n_images: int = 2000,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    extractor: str | None = None,
    reference: str | None = None,
    weights: str | Path | None = None,
    keep_in: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Metrics of `n_images` images on noise that no plan was chosen by.

    Args:
        subject: whatever sedaq.load takes, or a folder that `sedaq apply` wrote; its layers are de-quantized once, for speed.
        against: the full-precision subject, for paired measures (PSNR, feature distance) on the same noise.
        reference: images or statistics; the test set's statistics by default for shipped subjects and what was made from them, and of others
            images that `against` makes of other noise.
        weights: folder that sedaq wrote of a subject that is no diffusers model.
        keep_in: folder for what is kept of evaluations, full-precision images among it, for other evaluations; without one the user's cache, and no images.

    Returns:
        {metrics: {name: {value, se, halves}}, n_images, steps, seed, extractor, reference, seconds}. What was measured before is read back; that of
        subjects made by code or in Python, which nobody can compare, is measured anew.

    Raises:
        InputError: where no extractor or reference is known, or an argument is unusable.
    """
    if n_images < 8:
        raise InputError(f"`images` {n_images}: a Fréchet distance needs at least 8 images, and says little below 500")
    sampling = sampling or SamplingConfig()
    lines = sampling.prompt_lines
    measured = load(subject, prompts=lines, device=device, quantized=True, dtype=sampling.dtype, weights=weights)
    full = None if against is None else load(against, prompts=lines, device=device, dtype=sampling.dtype)
    densified = bool(quantized_modules(measured.denoiser))
    densify(measured.denoiser)
    _check(measured, full, sampling)
    name = extractor or measured.extractor
    if name is None:
        raise InputError(f"subject {measured.name} has no extractor of its own; choose one with `extractor`: {CHOICES}")
    extract = load_extractor(name, image_shape=measured.shape_of(sampling), device=device)
    is_named = not isinstance(subject, Subject) and not isinstance(against, Subject)
    task = _Evaluation(measured, full, sampling, n_images, seed, extract, keep_in, is_named, is_quantized=densified)
    return task.result(reference)


def _check(measured: Subject, full: Subject | None, sampling: SamplingConfig) -> None:
    """Raises InputError for images that would be in vain, or cannot be paired."""
    measured.check(sampling)
    if full is None:
        return
    full.check(sampling)
    if full.shape_of(sampling) != measured.shape_of(sampling) or full.conditions != measured.conditions:
        raise InputError(
            f"`against` {full.name}: makes other images than {measured.name}, so they cannot be paired; pass the model that it was made from"
        )


@dataclass(frozen=True)
class _Evaluation:
    """What is measured, and how."""

    measured: Subject
    full: Subject | None
    sampling: SamplingConfig
    n_images: int
    seed: int
    extract: Extractor
    keep_in: Path | None
    is_named: bool  # whether both models are as their files have them
    is_quantized: bool

    def result(self, reference: str | None) -> dict[str, Any]:
        """What `evaluate` returns, read back where it was measured before."""
        shape = self.measured.sample_shape_of(self.sampling)
        target = load_reference(reference, self.extract, image_shape=shape[-3:], default=self._default_reference)
        target.refuse_others(self.extract(torch.zeros(1, *shape)))  # before anything is sampled
        of_models = [self._hashes(subject) for subject in (self.measured, self.full) if subject is not None]
        if None in of_models:
            return self._measure(target, None)
        folder = self._folder / fingerprint([of_models, self.n_images, self._how, target.fingerprint])
        task = json_task("evaluation", folder.with_suffix(".json"), "evaluation result", lambda: self._measure(target, folder))
        found = task.result()
        shutil.rmtree(folder, ignore_errors=True)  # chunks are of no use once the whole is known
        return found

    @property
    def _folder(self) -> Path:
        return (self.keep_in or cache_folder()) / "evaluations"

    @property
    def _how(self) -> list[Any]:
        """What images and features depend on beside the model."""
        extractor = [self.extract.name, self.extract.fingerprint]
        device = next(self.measured.denoiser.parameters()).device.type
        return [VERSION, version("sedaq"), torch.__version__, device, self.sampling.identity, self.sampling.steps, self.seed, extractor]

    def _default_reference(self) -> Reference:
        of_images = len(self.measured.sample_shape_of(self.sampling)) == 3
        if self.measured.extractor == "embedded" and self.extract.name == "embedded" and of_images:
            return shipped_reference("test", self.extract)  # type: ignore[arg-type]
        if self.full is None:
            raise InputError("no reference to compare with; give real images or statistics as `reference`, or a model as `against`")
        full = self.full

        def make() -> Reference:
            return sampled_reference(full, self.sampling, self.extract, self.seed)

        hashes = self._hashes(full)
        if hashes is None:
            return make()
        return Task(
            "reference",
            self._folder / f"reference.{fingerprint([hashes, self._how])}.safetensors",
            make,
            write=lambda path, made: save_reference(path, made, self.extract, artifact(path)),
            read=lambda path: load_statistics(path, self.extract, artifact(path)),
        ).result()

    def _measure(self, target: Reference, folder: Path | None) -> dict[str, Any]:
        """Chunk by chunk; those that lie in `folder` are read."""
        start = clock()

        def chunk(first: int, count: int) -> dict[str, torch.Tensor]:
            if folder is None:
                return self._evidence(first, count, target)
            return Task(
                f"images {first} to {first + count - 1}",
                folder / f"{folder.name}.{first}.safetensors",
                lambda: self._evidence(first, count, target),
                write=lambda path, made: save_tensors(path, "evidence", made, artifact(path)),
                read=lambda path: load_tensors(path, "evidence", owner=artifact(path))[0],
            ).result()

        chunks = _chunks(self.n_images)
        parts = [chunk(*item) for item in track(chunks, "sampling", self.n_images, cost=lambda item: item[1])]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        metrics = measure_evidence(
            {name: tensor for name, tensor in joined.items() if not name.startswith(FULL)},
            target,
            full_precision={name.removeprefix(FULL): tensor for name, tensor in joined.items() if name.startswith(FULL)} or None,
            cycle=self.measured.cycle,
            seed=self.seed,
        )
        return {
            "metrics": {key: metric.to_json() for key, metric in metrics.items()},
            "n_images": self.n_images,
            "steps": self.sampling.steps,
            "seed": self.seed,
            "extractor": f"{self.extract.name}:{self.extract.fingerprint}",
            "reference": f"{target.description}:{target.fingerprint}",
            "seconds": round(clock() - start, 1),
        }

    def _evidence(self, first: int, count: int, target: Reference) -> dict[str, torch.Tensor]:
        """What metrics take of some images; of those in full precision, under names that begin with FULL."""
        requested = self.extract.requested(conditions_of(self.measured.conditions, first, count))
        full = None
        if self.full is not None:
            images = self._images(self.full, first, count, keep=True)
            full = Sample(images, self.extract(images), target, cycle=self.measured.cycle)
        images = self._images(self.measured, first, count, keep=not self.is_quantized)
        sample = Sample(images, self.extract(images), target, requested, full, self.measured.cycle)
        of_full = {} if full is None else {f"{FULL}{name}": evidence for name, evidence in evidence_of(full).items()}
        return evidence_of(sample) | of_full

    def _images(self, of: Subject, first: int, count: int, *, keep: bool) -> torch.Tensor:
        """Sampled now, or kept by an earlier evaluation."""

        def make() -> torch.Tensor:
            return of.sample(self.sampling, seed=purpose_seed(self.seed, "evaluate"), start=first, n_images=count)

        if self.keep_in is None or not keep:
            return make()
        key = fingerprint([of.fingerprint, self._hashes(of), self.sampling.identity, self.sampling.steps, self.seed, first, count])
        return tensor_task(f"images of {of.name}", self.keep_in / "images" / f"{key}.safetensors", "images", make).result()

    def _hashes(self, subject: Subject) -> list[Any] | None:
        """What a subject is told from others by; None for one made by code, of which nobody knows what it does."""
        if subject.folder is None or subject.source or not self.is_named:
            return None
        return [hashes_of(subject.folder), subject.conditions]


def _chunks(n_images: int) -> list[tuple[int, int]]:
    """(first, number) of images that are measured at once, never fewer than MIN_IMAGES."""
    *chunks, (first, count) = split_images(0, n_images, CHUNK)
    if chunks and count < MIN_IMAGES:
        before, of_before = chunks.pop()
        first, count = before, of_before + count
    return [*chunks, (first, count)]
