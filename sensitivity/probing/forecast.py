"""What probing a run will take, told from a minute of it: one sampling and one encoding of every shape of weight are timed.

Times are of this machine as it is now, and rough: docs/guide.md has one forecast beside what it took.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch

from ...aq.encoder.encoder import encode_objective
from ...aq.encoder.objective import Objective
from ...aq.plans.menu import Entry, candidates, cheapest, heuristic_menus
from ...aq.plans.menu_choice import N_OWN, draft_error
from ...errors import InputError
from ...kernels.timing import clock
from ...models.calibration import calibrate, hessian_bytes, passes
from ...models.hessian import Hessian, block_edges
from ...models.layers import EMBEDDING, Layer
from ...models.sampling import SamplingConfig
from ...models.shared_inputs import find_shared, groups_of
from ...progress import track
from ...runtime.executors import Processes, parse_executor
from ...runtime.ray_executor import Ray
from ..run import Run, probe_journal
from .gradients import N_CALLS
from .gradients import N_IMAGES as GRADIENT_IMAGES

ROWS = 256  # of a weight that its encoding is timed on
QUICK = 5.0  # seconds, below which a sampling is timed thrice
SLOW = 10.0  # seconds of a step, above which a single image is timed and taken for each of a batch
UNKNOWN_STEPS = 50  # of a sampler that does not say how many it takes
MIN_PROBES = 12  # that a predictor can be fitted to
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Stage:
    """One stage of probing. halved_by: arguments of which half as much, or twice as much of `workers`, takes half the time."""

    name: str
    seconds: float
    memory_bytes: int  # of the whole process at its peak
    disk_bytes: int
    halved_by: tuple[str, ...]


@dataclass(frozen=True)
class Forecast:
    """What is left of probing a run."""

    stages: tuple[Stage, ...]
    n_configs: int  # probes that are not measured yet

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def seconds_of_a_probe(self) -> float:
        return self.stages[-1].seconds / max(1, self.n_configs)

    def configs_within(self, seconds: float) -> int:
        """How many probes there is time for. Raises InputError where a predictor could not be fitted to so few."""
        before = self.seconds - self.stages[-1].seconds
        found = min(self.n_configs, int((seconds - before) / max(1e-9, self.seconds_of_a_probe)))
        if found < min(MIN_PROBES, self.n_configs):
            least = (before + min(MIN_PROBES, self.n_configs) * self.seconds_of_a_probe) / 3600
            raise InputError(
                f"`max_hours` is too short: {before / 3600:.2g} hours pass before the first probe, and {min(MIN_PROBES, self.n_configs)} "
                f"probes end after {least:.2g}; allow that, or take fewer `images` or `steps`"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """What the verb `probe` prints of it as JSON."""
        return {"seconds": self.seconds, "n_configs": self.n_configs, "stages": [asdict(stage) for stage in self.stages]}


@dataclass(frozen=True)
class _Sampling:
    """Seconds of one image: those of a step, and those before and after the steps."""

    step: float
    fixed: float
    batch: int  # images that were sampled at once

    def seconds(self, n_images: int, steps: int) -> float:
        return n_images * (self.fixed + steps * self.step)


def forecast(run: Run, n_configs: int, *, executor: str = "serial", memory_bytes: int | None = None) -> Forecast:
    """What is left to do in a run until `n_configs` probes are measured. Nothing is written. Menus and encodings that were begun count as made.

    Args:
        executor, memory_bytes: as for probing.

    Raises:
        InputError: for settings that the sampler refuses.
    """
    subject, settings = run.subject, run.settings
    subject.check(settings.sampling, settings.calibration_steps)
    sampling = _timed_sampling(run)
    steps = settings.steps or subject.adapter.default_steps or UNKNOWN_STEPS
    resident, weights = _peak_bytes(), sum(FLOAT * layer.n_weights for layer in subject.layers)
    n_stored = sum(1 for record in probe_journal(run.folder).read() if record["purpose"] == "probe") if run.folder.exists() else 0
    left = max(0, n_configs - n_stored)
    stages = [_calibration(run, sampling, settings.calibration["steps"] or steps, resident, memory_bytes), *_encoding(run, resident)]
    gradients = sampling.seconds(GRADIENT_IMAGES, steps) + 3 * N_CALLS * sampling.step
    begun = any(run.folder.glob("calibration/traits.*"))
    stages.append(Stage("gradients, to fit", 0.0 if begun else gradients, resident + weights, 0, ("steps",)))
    where = parse_executor(executor)
    workers = where.n if isinstance(where, Processes | Ray) else 1
    at_once = workers if isinstance(where, Ray) else min(workers, os.cpu_count() or 1)
    sampled_too = (
        0 if n_stored else settings.n_images + (0 if settings.reference or subject.extractor == "embedded" else settings.reference_images)
    )
    seconds = sampling.seconds(sampled_too + left * settings.n_images, steps) / at_once
    stages.append(Stage("probes", seconds, workers * (resident + weights), 0, ("configs", "images", "steps", "workers")))
    return Forecast(tuple(stages), left)


def _peak_bytes() -> int:
    """Of this process so far."""
    import resource

    return max(psutil.Process().memory_info().rss, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _timed_sampling(run: Run) -> _Sampling:
    subject, settings = run.subject, run.settings

    def seconds(steps: int, n_images: int) -> float:
        """The least of three where that is soon done."""
        found: list[float] = []
        while len(found) < (3 if sum(found) < QUICK else 1):
            start = clock()
            subject.sample(replace(settings.sampling, steps=steps), seed=0, n_images=n_images)
            found.append(clock() - start)
        return min(found)

    one = seconds(2, 1)
    batch = 1 if one > 2 * SLOW else settings.sampling.batch_size or min(settings.n_images, subject.adapter.batch_size)
    few, more = (one if batch == 1 else seconds(2, batch)), seconds(4, batch)
    step = max(1e-6, (more - few) / 2)
    return _Sampling(step / batch, max(0.0, few - 2 * step) / batch, batch)


def _calibration(run: Run, sampling: _Sampling, steps: int, resident: int, memory_bytes: int | None) -> Stage:
    layers, n_images = [layer for layer in run.store.uncalibrated() if layer.kind != EMBEDDING], run.store.calibration["n_images"]
    halved = ("calibration_images", "calibration_steps")
    if not layers:
        return Stage("calibration", 0.0, resident, 0, halved)
    memory_bytes = memory_bytes or psutil.virtual_memory().available // 2
    groups = groups_of(layers, find_shared(run.subject, layers, run.settings.sampling))
    planned = passes(groups, memory_bytes)
    start = clock()
    how: SamplingConfig = replace(run.settings.sampling, steps=2)
    for _ in calibrate(
        run.subject, [layer for group in planned[0] for layer in group], n_images=sampling.batch, sampling=how, memory_bytes=memory_bytes
    ):
        pass
    looking = sampling.seconds(1, 2)  # for layers with the same input
    hooks = max(0.0, (clock() - start - looking) / sampling.batch - sampling.seconds(1, 2)) / 2  # of an image and step
    seconds = looking + len(planned) * (sampling.seconds(n_images, steps) + n_images * steps * hooks)
    largest = max(sum(hessian_bytes(group[0]) for group in some) for some in planned)
    return Stage("calibration", seconds, resident + largest, sum(hessian_bytes(layer) for layer in layers), halved)


def _encoding(run: Run, resident: int) -> Sequence[Stage]:
    """Menus and encodings, by the time that each shape takes."""
    subject = run.subject
    menus = heuristic_menus(subject, run.settings.rates)
    shapes: dict[tuple[tuple[int, ...], int], list[Layer]] = {}
    for layer in subject.layers:
        shapes.setdefault((layer.shape, layer.groups), []).append(layer)
    drafts, codes = 0.0, 0.0
    for layers in track(list(shapes.values()), "timing one encoding of each shape"):
        draft, full = _timed_encoding(run, layers[0])
        drafts += len(layers) * len(run.settings.rates) * N_OWN / 2 * draft  # about half of what is tried was tried before
        codes += len(layers) * _n_quantized(menus[layers[0].name]) * full
    largest = max(_encoding_bytes(layer) for layer in subject.layers)
    disk = sum(entry.size_bytes for menu in menus.values() for entry in menu[:-1])
    done = any(run.folder.glob("encodings/*"))
    menus_done = any(run.folder.glob("menus/*"))
    halved = ("effort", "rates")
    return (
        Stage("menus", 0.0 if menus_done else drafts, resident + largest, 0, ("rates",)),
        Stage("encoding", 0.0 if done else codes, resident + largest, 0 if done else disk, halved),
    )


def _n_quantized(menu: Sequence[Entry]) -> int:
    return sum(entry.format.kind == "additive" for entry in menu)


def _encoding_bytes(layer: Layer) -> int:
    """A weight and its error a few times, and its H with a copy and a factor, in float32."""
    return 6 * FLOAT * layer.n_weights + 3 * hessian_bytes(layer)


def _timed_encoding(run: Run, layer: Layer) -> tuple[float, float]:
    """Seconds of a layer at draft effort on some rows, as menus are measured, and at the run's effort whole."""
    rows = run.subject.weight(layer.name).cpu().flatten(1)
    n_rows = min(len(rows), ROWS * layer.groups) // layer.groups * layer.groups
    shape = (n_rows, *layer.shape[1:])
    objective = Objective.of(rows[:n_rows].reshape(shape), _random_hessian(layer), layer.groups)
    found = candidates(2.0, (layer.shape,), 1)
    format = found[0] if found else cheapest(layer.shape)
    start = clock()
    draft_error(objective, format)
    drafted = clock()
    encode_objective(objective, format, effort=run.settings.effort)
    return drafted - start, (clock() - drafted) * len(rows) / n_rows


def _random_hessian(layer: Layer) -> Hessian:
    """Second moments of as many random inputs as are enough to be correlated."""
    generator = torch.Generator().manual_seed(0)
    edges = block_edges(layer.shape)
    inputs = [torch.randn(64, stop - start, generator=generator) for start, stop in zip(edges, edges[1:], strict=False)]
    return Hessian(tuple((x.T @ x / 64 + torch.eye(x.shape[1])).expand(layer.groups, -1, -1) for x in inputs))
