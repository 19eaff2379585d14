"""Measuring one assignment of formats to layers: sample, extract features, compare.

All measurements of one purpose share noise and conditions, so that differences are paired.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ...aq.activations.quantizer import ActivationQuantizers, attached
from ...aq.formats import AS_IS, Format
from ...aq.plans.plan import weight_bits
from ...errors import DamagedError, InputError
from ...kernels.timing import clock
from ...models.noise import purpose_seed
from ...models.sampling import conditions_of
from ...remote import pull
from ...runtime.owner import artifact, owner
from ...runtime.tasks import Task, claimed
from ...storage import fingerprint, load_tensors, save_tensors
from ..metrics.bootstrap import Estimate
from ..metrics.extractors import CHOICES, load_extractor
from ..metrics.fidelity import feature_distance
from ..metrics.frechet import NotFiniteError
from ..metrics.reference import load_reference, load_statistics, sampled_reference, save_reference, shipped_reference
from ..metrics.registry import METRICS, evidence_of, measure, metric_of
from ..metrics.sample import Reference, Sample
from ..run import PROBE, TUNED_PROBE, Run, probe_journal
from .assembly import Assembly
from .tuned_plans import short_tuning, tuned_plan

log = logging.getLogger("sedaq")

WITHOUT_EVIDENCE = (PROBE, TUNED_PROBE)  # purposes of measurements that are never compared pair by pair


@dataclass(frozen=True)
class Measurement:
    """One plan's images, measured. `record` is the stored line."""

    record: dict[str, Any]
    evidence: dict[str, torch.Tensor] | None = (
        None  # what paired differences are computed from; None for probes and where the model overflows
    )

    @property
    def metrics(self) -> dict[str, Estimate]:
        return {name: Estimate.from_json(value) for name, value in self.record["metrics"].items()}

    @property
    def ruined(self) -> bool:
        """is_ruined, as far as it is known."""
        return bool(self.record.get("ruined"))


class Prober:
    """Measures assignments of formats on one run's subject. What was measured before is read back.

    Args:
        split: statistics to measure shipped subjects against: "train" while choosing, "test" for final figures.
        inputs: how the inputs of layers are rounded, of those that a plan does not leave as they are.
    """

    def __init__(self, run: Run, *, split: str = "train", inputs: ActivationQuantizers | None = None) -> None:
        self.run, self.split, self.inputs = run, split, inputs
        name = run.settings.extractor or run.subject.extractor
        if name is None:
            raise InputError(f"subject {run.subject.name} has no extractor of its own; choose one with `extractor`: {CHOICES}")
        self.extractor = load_extractor(name, image_shape=run.subject.shape_of(run.settings.sampling), device=run.device)
        self._full_precision: dict[tuple[str, int, int | None], Sample] = {}
        self._assembly = Assembly(run.subject, run.store)
        self.journal = probe_journal(run.folder)
        self._records: dict[str, dict[str, Any]] = {}
        self._read_new()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by what it is opened from, for workers in other processes."""
        return partial(Prober, self.run, split=self.split, inputs=self.inputs), ()

    @cached_property
    def reference(self) -> Reference:
        """What images are compared with: given, shipped, or sampled now."""
        settings, shape = self.run.settings, self.run.subject.sample_shape_of(self.run.settings.sampling)

        def default() -> Reference:
            if self.run.subject.extractor == "embedded" and self.extractor.name == "embedded" and len(shape) == 3:
                return shipped_reference(self.split, self.extractor)  # type: ignore[arg-type]
            return Task(
                "reference",
                self.run.folder / "reference.safetensors",
                self._sampled_reference,
                write=lambda path, made: save_reference(path, made, self.extractor, owner(self.run.folder)),
                read=lambda path: load_statistics(path, self.extractor, owner(self.run.folder)),
            ).result()

        found = load_reference(settings.reference, self.extractor, image_shape=shape[-3:], default=default)
        found.refuse_others(self.extractor(torch.zeros(1, *shape)))  # before anything is sampled
        return found

    def _sampled_reference(self) -> Reference:
        settings = self.run.settings
        return sampled_reference(self.run.subject, settings.sampling, self.extractor, settings.seed, settings.reference_images)

    def key(self, formats: Mapping[str, Format], purpose: str, n_images: int, steps: int | None, tuned_steps: int = 0) -> str:
        """Under which a measurement is stored: all that its numbers depend on."""
        layers = {name: str(format) for name, format in formats.items()}
        rounded = self._rounded(formats)
        return fingerprint(
            [
                self.run.subject.fingerprint,
                layers,
                self.run.store.identity,
                purpose,
                n_images,
                steps,
                self.extractor.fingerprint,
                self.reference.fingerprint,
                *([rounded.fingerprint] if rounded.choices else []),
                *([{"tuned": vars(short_tuning(self.run.settings, tuned_steps))}] if tuned_steps else []),
            ]
        )

    def _rounded(self, formats: Mapping[str, Format]) -> ActivationQuantizers:
        return (self.inputs or ActivationQuantizers({})).of({name for name, format in formats.items() if format != AS_IS})

    def measure(
        self,
        formats: Mapping[str, Format],
        *,
        purpose: str = PROBE,
        n_images: int | None = None,
        steps: int | None = None,
        tuned_steps: int = 0,
    ) -> Measurement:
        """`measure_once`, with as many images and steps as the run has where nothing is said, and whoever is at it."""
        steps = self.run.settings.steps if steps is None else steps
        what = formats, purpose, n_images or self.run.settings.n_images, steps, tuned_steps
        with self.assembling():
            found = self.stored(*what) or self.measure_once(*what, wait=True)
        assert found is not None
        return found

    def measure_once(
        self, formats: Mapping[str, Format], purpose: str, n_images: int, steps: int | None, tuned_steps: int = 0, *, wait: bool
    ) -> Measurement | None:
        """Sample, measure and keep one assignment, unless another command has done so; probes are kept in probes.jsonl, other purposes with their
        features beside it. Leaves the model as it was assembled.

        Args:
            tuned_steps: of tuning, after which it is sampled.

        Returns:
            None where another command is at it, and `wait` is false.
        """
        what = formats, purpose, n_images, steps, tuned_steps
        key = self.key(*what)
        with claimed(self.journal.path.with_name(f"probes.{key}"), wait=wait) as is_mine:
            if not is_mine:
                return None
            self._read_new()
            found = self.stored(*what)
            if found is None:
                found = self.sample_and_measure(*what)
                self.keep(found)
        return found

    def _read_new(self) -> None:
        self._records |= {record["key"]: record for record in self.journal.unread()}

    def stored(
        self, formats: Mapping[str, Format], purpose: str, n_images: int, steps: int | None, tuned_steps: int = 0
    ) -> Measurement | None:
        """What was measured before."""
        key = self.key(formats, purpose, n_images, steps, tuned_steps)
        if key not in self._records:
            return None
        if purpose in WITHOUT_EVIDENCE or _overflowed(self._records[key]):
            return Measurement(self._records[key])
        path = self._features_path(key)
        if not pull(path):
            return None
        try:
            return Measurement(self._records[key], load_tensors(path, "features", owner={"key": key, **artifact(path)})[0])
        except DamagedError:
            log.warning("%s: damaged; the plan is measured again", path)
            return None

    def record(self, key: str) -> dict[str, Any] | None:
        """The stored record of a key."""
        return self._records.get(key)

    def learn(self, record: dict[str, Any]) -> None:
        """Know a record that a worker measured."""
        self._records[record["key"]] = record

    def keep(self, measurement: Measurement) -> None:
        """Store a measurement in the run, its features first."""
        key = measurement.record["key"]
        if measurement.evidence is not None:
            path = self._features_path(key)
            save_tensors(path, "features", measurement.evidence, {"key": key, **artifact(path)})
        with self.journal.writing() as write:
            write(measurement.record)
        self.learn(measurement.record)

    def _features_path(self, key: str) -> Path:
        return self.run.folder / "features" / f"{key}.safetensors"

    @contextmanager
    def assembling(self) -> Iterator[None]:
        """Run the block; weights that measurements left in the model are full precision's again after it."""
        try:
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Put full precision's weights back."""
        self._assembly.restore()

    def sample_and_measure(
        self, formats: Mapping[str, Format], purpose: str, n_images: int, steps: int | None, tuned_steps: int = 0
    ) -> Measurement:
        """A new measurement, not kept; leaves the model as it was assembled, for the next plan has much in common with this one.

        A plan under which the model overflows is no error: its metrics are NaN, null in the file.
        """
        start = clock()
        subject = self.run.subject
        full_precision = self.full_precision(purpose, n_images, steps)
        with self._model_of(formats, tuned_steps):
            images = self._sample(purpose, n_images, steps, may_overflow=True)
        metrics, evidence = self._measured(images, full_precision, purpose)
        record = {
            "key": self.key(formats, purpose, n_images, steps, tuned_steps),
            "plan_hash": fingerprint([subject.fingerprint, {name: str(f) for name, f in formats.items()}, {}, self.run.store.identity]),
            "purpose": purpose,
            "layers": {name: str(format) for name, format in formats.items()},
            "bits_per_weight": weight_bits(subject, formats),
            "seed": self.run.settings.seed,
            "start": 0,
            "n_images": n_images,
            "steps": steps,
            **({"tuned_steps": tuned_steps} if tuned_steps else {}),
            "extractor": f"{self.extractor.name}:{self.extractor.fingerprint}",
            "reference": f"{self.reference.description}:{self.reference.fingerprint}",
            "metrics": {name: metric.to_json() for name, metric in sorted(metrics.items())},  # as the journal gives them back
            "ruined": is_ruined(metrics, full_precision),
            "seconds": round(clock() - start, 3),
        }
        return Measurement(record, evidence)

    def _model_of(self, formats: Mapping[str, Format], tuned_steps: int) -> AbstractContextManager[None]:
        """The run's model with a plan's weights and rounded inputs, tuned where steps are given."""
        rounded = self._rounded(formats)
        if tuned_steps:
            self._assembly.restore()
            return tuned_plan(self.run, formats, tuned_steps, rounded if rounded.choices else None)
        self._assembly.set(formats)
        return attached(self.run.subject.denoiser, *rounded.modules(self.run.subject.denoiser))

    def _measured(
        self, images: torch.Tensor, full_precision: Sample, purpose: str
    ) -> tuple[dict[str, Estimate], dict[str, torch.Tensor] | None]:
        """Metrics, and what paired differences need where the purpose is another than probing."""
        features = self.extractor(images)
        requested = self.extractor.requested(conditions_of(self.run.subject.conditions, 0, len(images)))
        try:
            sample = Sample(images, features, self.reference, requested, full_precision, self.run.subject.cycle)
        except NotFiniteError:
            paired = [metric for metric in METRICS.values() if metric.records_excess]
            return {name: Estimate.undefined() for metric in paired for name in (metric.name, metric.excess_name)}, None
        return measure(sample, seed=self.run.settings.seed), None if purpose in WITHOUT_EVIDENCE else evidence_of(sample)

    def full_precision(self, purpose: str, n_images: int, steps: int | None) -> Sample:
        """The full-precision model on the noise of `purpose`. Raises SedaqError where they are not finite."""
        key = (purpose, n_images, steps)
        if key not in self._full_precision:
            self._assembly.restore()
            images = self._sample(purpose, n_images, steps)
            self._full_precision[key] = Sample(images, self.extractor(images), self.reference, cycle=self.run.subject.cycle)
        return self._full_precision[key]

    def _sample(self, purpose: str, n_images: int, steps: int | None, *, may_overflow: bool = False) -> torch.Tensor:
        settings = self.run.settings
        sampling = replace(settings.sampling, steps=steps)
        noise = purpose_seed(settings.seed, purpose)
        return self.run.subject.sample(sampling, seed=noise, n_images=n_images, may_overflow=may_overflow)

    def worsening(self, a: Measurement, b: Measurement, metric: str) -> tuple[float, float, float]:
        """How much worse a is than b on the same noise, by a metric and in its unit, with a 95 % interval; below zero, a is better."""
        known, (one, other) = metric_of(metric), (self._evidence(measurement, metric) for measurement in (a, b))
        return known.worsening(one, other, self.reference, cycle=self.run.subject.cycle, seed=self.run.settings.seed)

    def _evidence(self, measurement: Measurement, metric: str) -> torch.Tensor:
        name = metric_of(metric).evidence_name
        if measurement.evidence is None and _overflowed(measurement.record):
            raise NotFiniteError(
                f"plan {measurement.record['plan_hash']} of {measurement.record['bits_per_weight']:.4g} bits: under it the model overflows, so that it "
                "cannot be compared; give its layers more bits"
            )
        if measurement.evidence is None or name not in measurement.evidence:
            raise InputError(
                f"{self._features_path(measurement.record['key'])}: holds nothing to compare plans by metric {metric!r} with; "
                "remove the file, so that the plan is measured again, or fit another metric"
            )
        return measurement.evidence[name]


def is_ruined(metrics: Mapping[str, Estimate], full_precision: Sample) -> bool:
    """Whether images are no longer those of the model: further from full precision's on the same noise than these are from others of their conditions.

    Distances of such plans say little about their layers; those of 1.5 bits a weight are of this kind, often.
    """
    distance, features = metrics.get("feature_distance"), full_precision.features.pooled
    others = features.roll(full_precision.cycle if len(features) > full_precision.cycle else 1, 0)
    return distance is None or not distance.value < feature_distance(features, others).mean().item()


def _overflowed(record: dict[str, Any]) -> bool:
    """Whether the images were not finite."""
    return all(metric["value"] is None for metric in record["metrics"].values())
