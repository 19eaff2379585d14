"""Probing: what images lose when layers get few bits.

A probe is one assignment of menu entries to layers, sampled with the noise and conditions of all other probes, so that differences are
paired. Source: Qua²SeDiMo (Mills et al. 2025) draws random per-layer bits and measures Fréchet distances; we draw over real encodings
instead of simulated rounding, and keep paired measures and standard errors beside the distance.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..aq.formats import Format
from ..aq.plan import weight_bits
from ..errors import InputError
from ..models.noise import purpose_seed
from ..models.sampling import conditions_of
from ..progress import track
from ..storage import append_record, fingerprint, load_tensors, read_records, save_tensors
from .designs import check_design, design_plans
from .extractors import load_extractor
from .fidelity import Features, Metric, Reference, frechet_difference, measure
from .reference import build_reference, load_reference, save_reference, shipped_reference
from .run import Run, Settings

REFERENCE_IMAGES = 2000  # full-precision images where no reference is given


@dataclass(frozen=True)
class Measurement:
    """One plan's images, measured. `record` is the stored line."""

    record: dict[str, Any]
    pooled: torch.Tensor | None = None  # (n, d) features; None when read back from a probe

    @property
    def metrics(self) -> dict[str, Metric]:
        return {name: Metric.from_json(value) for name, value in self.record["metrics"].items()}


class Prober:
    """Measures assignments of formats on one run's subject. What was measured before is read back.

    Args:
        split: statistics to measure shipped subjects against: "train" while choosing, "test" for final figures.
    """

    def __init__(self, run: Run, *, split: str = "train") -> None:
        self.run, self.split = run, split
        name = run.settings.extractor or run.subject.extractor
        if name is None:
            raise InputError(
                f"subject {run.subject.name} has no extractor of its own; choose one with --extractor (inception[:FILE] or transformers:FOLDER)"
            )
        self.extractor = load_extractor(name, image_shape=run.subject.image_shape, device=run.device)
        self.reference = self._reference()
        self._full_precision: dict[tuple[str, int, int | None], tuple[torch.Tensor, Features]] = {}
        self._dense: dict[tuple[str, str], torch.Tensor] = {}
        self._stored: dict[str, dict[str, Any]] = {r["key"]: r for r in read_records(self._path, "probe")}

    @property
    def _path(self) -> Path:
        return self.run.folder / "probes.jsonl"

    def _reference(self) -> Reference:
        def default() -> Reference:
            if self.run.subject.extractor == "embedded" and self.extractor.name == "embedded":
                return shipped_reference(self.split, self.extractor)  # type: ignore[arg-type]
            stored = self.run.folder / "reference.safetensors"
            if stored.exists():
                return load_reference(stored, self.extractor, image_shape=self.run.subject.image_shape)
            settings = self.run.settings
            noise = purpose_seed(settings.seed, "reference")
            chunks = range(0, REFERENCE_IMAGES, 100)
            batches = (
                self.run.subject.sample(seed=noise, start=i, n_images=100, steps=settings.steps, **settings.sampling)
                for i in track(chunks, "reference: full-precision images with other noise")
            )
            identity = fingerprint(
                [self.run.subject.fingerprint, self.extractor.fingerprint, noise, settings.steps, settings.sampling, REFERENCE_IMAGES]
            )
            description = f"{REFERENCE_IMAGES} full-precision images made with other noise"
            made = build_reference(batches, self.extractor, description=description, fingerprint=identity)
            save_reference(stored, made, self.extractor)
            return made

        return load_reference(self.run.settings.reference, self.extractor, image_shape=self.run.subject.image_shape, default=default)

    # -- weights ---------------------------------------------------------------------------------------------------------------------

    def weights(self, formats: Mapping[str, Format]) -> dict[str, torch.Tensor]:
        """Dense weights of every layer that is not as it is. Each is de-quantized once."""
        result = {}
        for layer in self.run.subject.layers:
            format = formats[layer.name]
            if format.kind != "asis":
                key = (layer.name, str(format))
                if key not in self._dense:
                    self._dense[key] = self.run.store.get(layer, format).dequantize()
                result[layer.name] = self._dense[key]
        return result

    # -- measuring -------------------------------------------------------------------------------------------------------------------

    def full_precision(self, purpose: str, n_images: int, steps: int | None) -> tuple[torch.Tensor, Features]:
        """Images and features of the full-precision model on the noise of `purpose`."""
        key = (purpose, n_images, steps)
        if key not in self._full_precision:
            images = self._sample(purpose, n_images, steps)
            self._full_precision[key] = (images, self.extractor(images))
        return self._full_precision[key]

    def _sample(self, purpose: str, n_images: int, steps: int | None) -> torch.Tensor:
        settings = self.run.settings
        return self.run.subject.sample(
            seed=purpose_seed(settings.seed, purpose), start=0, n_images=n_images, steps=steps, **settings.sampling
        )

    def key(self, formats: Mapping[str, Format], purpose: str, n_images: int, steps: int | None) -> str:
        """Under which a measurement is stored: all that its numbers depend on."""
        layers = {name: str(format) for name, format in formats.items()}
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
            ]
        )

    def measure(
        self, formats: Mapping[str, Format], *, purpose: str = "probe", n_images: int | None = None, steps: int | None = None
    ) -> Measurement:
        """Sample and measure one assignment; probes are kept in probes.jsonl, other purposes with their features beside it."""
        n_images = n_images or self.run.settings.n_images
        steps = self.run.settings.steps if steps is None else steps
        key = self.key(formats, purpose, n_images, steps)
        features_path = self.run.folder / "features" / f"{key}.safetensors"
        keeps_features = purpose != "probe"
        if key in self._stored and (not keeps_features or features_path.exists()):
            return Measurement(self._stored[key], load_tensors(features_path, "features")[0]["pooled"] if keeps_features else None)
        measurement = self._measure(formats, key, purpose, n_images, steps)
        if keeps_features:
            assert measurement.pooled is not None
            save_tensors(features_path, "features", {"pooled": measurement.pooled}, {"key": key})
        self.keep(measurement.record)
        return measurement

    def keep(self, record: dict[str, Any]) -> None:
        append_record(self._path, "probe", record)
        self._stored[record["key"]] = record

    def _measure(self, formats: Mapping[str, Format], key: str, purpose: str, n_images: int, steps: int | None) -> Measurement:
        start = time.perf_counter()
        subject = self.run.subject
        full_precision = self.full_precision(purpose, n_images, steps)
        with subject.weights_replaced(self.weights(formats)):
            images = self._sample(purpose, n_images, steps)
        features = self.extractor(images)
        conditions = conditions_of(subject.conditions, 0, n_images)
        requested = torch.tensor(conditions) if conditions and isinstance(conditions[0], int) else None
        metrics = measure(
            features, images, reference=self.reference, requested=requested, full_precision=full_precision, seed=self.run.settings.seed
        )
        record = {
            "key": key,
            "plan_hash": fingerprint([subject.fingerprint, {name: str(f) for name, f in formats.items()}, {}, self.run.store.identity]),
            "purpose": purpose,
            "layers": {name: str(format) for name, format in formats.items()},
            "bits_per_weight": weight_bits(subject, formats),
            "seed": self.run.settings.seed,
            "start": 0,
            "n_images": n_images,
            "steps": steps,
            "extractor": f"{self.extractor.name}:{self.extractor.fingerprint}",
            "reference": f"{self.reference.description}:{self.reference.fingerprint}",
            "metrics": {name: metric.to_json() for name, metric in metrics.items()},
            "seconds": round(time.perf_counter() - start, 3),
        }
        return Measurement(record, features.pooled)

    def is_stored(self, formats: Mapping[str, Format]) -> bool:
        return self.key(formats, "probe", self.run.settings.n_images, self.run.settings.steps) in self._stored

    def difference(self, a: Measurement, b: Measurement) -> tuple[float, float, float]:
        """Fréchet distance of a minus that of b on the same noise, with a 95 % interval."""
        assert a.pooled is not None and b.pooled is not None
        return frechet_difference(a.pooled, b.pooled, self.reference.statistics, seed=self.run.settings.seed)


# -- the verb ------------------------------------------------------------------------------------------------------------------------

_worker: Prober | None = None


def _start_worker(folder: str, device: str, threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = Prober(Run.open(folder, device=device))


def _work(formats: dict[str, str]) -> dict[str, Any]:
    assert _worker is not None
    parsed = {name: Format.parse(text) for name, text in formats.items()}
    settings = _worker.run.settings
    key = _worker.key(parsed, "probe", settings.n_images, settings.steps)
    return _worker._measure(parsed, key, "probe", settings.n_images, settings.steps).record


def probe(
    subject: Any,
    run: str | Path,
    *,
    n_configs: int = 64,
    design: str = "stratified",
    settings: Settings | None = None,
    workers: int = 1,
    device: str = "cpu",
    memory_bytes: int | None = None,
) -> Run:
    """Encode the menu of every layer and measure `n_configs` plans; goes on where an earlier call stopped.

    Args:
        subject: whatever sedaq.load takes.
        run: folder of the run.
        n_configs: at most; a design of few plans may have less.
        design: a name in designs.DESIGNS; a run may be probed by several, one after the other.
        workers: processes that share the work; each gets an equal part of the processor's cores.
        memory_bytes: bound on a calibration pass; half of what is free when None.
    """
    if n_configs < 1 or workers < 1:
        raise InputError(f"--configs and --workers must be at least 1, got {n_configs} and {workers}")
    check_design(design)
    opened = Run.begin(subject, run, settings or Settings(), device=device)
    prober = Prober(opened)
    if not (opened.folder / "run.json").exists():  # settings that the sampler refuses are found before anything is written
        opened.subject.sample(seed=opened.settings.seed, n_images=1, steps=1, **opened.settings.sampling)
    opened.write()
    opened.fill_store(memory_bytes)
    plans = design_plans(design, opened.subject.layers, opened.menus, n_plans=n_configs, seed=opened.settings.seed)
    missing = [plan for plan in plans if not prober.is_stored(plan)]
    done = len(plans) - len(missing)
    if workers == 1 or len(missing) <= 1:
        for plan in track(missing, "probing", len(plans), done=done):
            prober.measure(plan)
        return opened
    if opened.subject_argument is None:
        raise InputError("--workers above 1 needs a subject that each worker can load by itself; pass a folder or FILE.py:FUNCTION")
    threads = max(1, torch.get_num_threads() // workers)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (str(opened.folder), device, threads))
    with pool:
        futures = [pool.submit(_work, {name: str(format) for name, format in plan.items()}) for plan in missing]
        # in the plans' order, so that the file is the one that a single worker writes
        for future in track(futures, "probing", len(plans), done=done):
            prober.keep(future.result())
    return opened
