"""The verb `probe`: measure what images lose when layers get few bits.

A probe is one assignment of menu entries to layers. Source: Qua²SeDiMo (Mills et al. 2025) draws random per-layer bits and measures Fréchet
distances; we draw over real encodings instead of simulated rounding, pair all probes by their noise, and keep paired measures and standard
errors beside the distance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ...errors import InputError
from ...kernels.timing import clock
from ...progress import track
from ...runtime.owner import owner
from ...runtime.status import telling
from ...storage import write_json
from ..metrics.registry import DEFAULT, metric_of
from ..prior.observed import observed
from ..run import Run
from ..settings import Settings
from .adaptive import Adaptive
from .designs import AUTO, check_design, design_plans, rates_of
from .forecast import forecast
from .layer_statistics import LayerStatistics
from .measurer import Measurer, PlanTask, probe_task
from .prober import Prober
from .ruined import lowest_useful_rate, plans_above

log = logging.getLogger("sedaq")
T = TypeVar("T")


def probe(
    subject: Any,
    run: str | Path,
    *,
    n_configs: int = 64,
    design: str = "stratified",
    metric: str = DEFAULT,
    settings: Settings | None = None,
    executor: str = "serial",
    device: str = "cpu",
    memory_bytes: int | None = None,
) -> Run:
    """Encode the menu of every layer and measure `n_configs` plans; goes on where an earlier call stopped.

    Args:
        subject: whatever sedaq.load takes.
        run: folder of the run.
        n_configs: at most; a design of few plans may have less. 0 makes menus and encodings alone.
        design: "auto" (adaptive.py, which may stop earlier and says so in probing.json) or a name in designs.DESIGNS; a run may be probed by several, one after the other.
        metric: what the "auto" design goes by; all metrics are recorded.
        executor: "serial", "processes:N" for N processes that share the work, each with an equal part of the processor's cores, or a Ray cluster: "ray:auto",
            "ray://HOST:PORT".
        memory_bytes: bound on a calibration pass; half of what is free when None.
    """
    opened = Run.begin(subject, run, settings or Settings(), device=device)
    probe_run(opened, n_configs=n_configs, design=design, metric=metric, executor=executor, memory_bytes=memory_bytes)
    return opened


@telling("probe")
def probe_run(
    opened: Run,
    *,
    n_configs: int = 64,
    design: str = "stratified",
    metric: str = DEFAULT,
    tuned_steps: int | None = None,
    executor: str = "serial",
    memory_bytes: int | None = None,
    max_hours: float | None = None,
) -> None:
    """`probe` of a run that is open, on disk or not yet.

    Args:
        tuned_steps: of tuning, after which every plan is measured; by any design but "auto".
        max_hours: as many plans as there is time for, by a forecast; measuring ends in time, too.
    """
    if n_configs < 0:
        raise InputError(f"`configs`: got {n_configs}; give a number of plans, or 0 to make menus and encodings alone")
    if max_hours is not None and not max_hours > 0:
        raise InputError(f"`max_hours`: got {max_hours}; give a number above 0")
    check_design(design)
    metric_of(metric)
    if tuned_steps is not None and (tuned_steps < 1 or design == AUTO):
        raise InputError(f"`tuned_steps`: got {tuned_steps} for `design` {design}; give a number above 0, and another design than {AUTO}")
    deadline = math.inf
    if max_hours is not None:
        deadline, n_before = clock() + 3600 * max_hours, n_configs
        expected = forecast(opened, n_configs, executor=executor, memory_bytes=memory_bytes)
        n_configs -= expected.n_configs - expected.configs_within(deadline - clock())
        if n_configs < n_before:
            log.warning("%g hours are expected to be enough for %d of %d plans", max_hours, n_configs, n_before)
    prober = Prober(opened)
    if opened.settings.reference is not None:
        prober.reference  # noqa: B018  one that cannot be read is told of before anything is written
    measurer = Measurer(prober, executor)
    if not (opened.folder / "run.json").exists():  # settings that the sampler refuses are found before anything is written
        opened.subject.check(opened.settings.sampling, opened.settings.calibration_steps)
    opened.write()
    opened.fill_store(memory_bytes, executor=executor)
    with measurer:
        if n_configs == 0:
            pass
        elif design == AUTO:
            _adapt(opened, measurer, n_configs, metric, deadline)
        else:
            plans = design_plans(design, opened.subject.layers, opened.menus, n_plans=n_configs, seed=opened.settings.seed)
            n_uniform, steps = len(rates_of(opened.menus)) if design == "stratified" else 0, tuned_steps or 0
            if 0 < n_uniform < n_configs:
                deadline = _measure(measurer, [probe_task(opened, plan, steps) for plan in plans[:n_uniform]], deadline)
                floor = lowest_useful_rate(opened, measurer, steps)
                if floor is not None:
                    log.warning("below %g bits every uniform plan is ruined: most probes keep layers above", floor)
                    plans = plans_above(floor, opened, plans[:n_uniform], n_configs)
            _measure(measurer, [probe_task(opened, plan, steps) for plan in plans], deadline)
    LayerStatistics(opened)  # what `fit` wants to know of the weights, so that it need not load the model
    observed(opened)  # and of what layers see


def _measure(measurer: Measurer, tasks: Sequence[PlanTask], deadline: float) -> float:
    """Returns the deadline, or one that is over where time was over."""
    n_stored = sum(measurer.is_stored(task) for task in tasks)
    if n_stored == len(tasks) or clock() > deadline:
        return deadline
    new = islice(measurer.measure(tasks), n_stored, None)  # those that are stored come first
    n_measured = sum(1 for _ in _until(deadline, track(new, "probing", len(tasks), done=n_stored)))
    return deadline if n_stored + n_measured == len(tasks) else -math.inf


def _until(deadline: float, measurements: Iterator[T]) -> Iterator[T]:
    """Measurements, as long as another one is likely to end before the deadline."""
    start = clock()
    for n_done, measurement in enumerate(measurements, start=1):
        yield measurement
        if clock() + (clock() - start) / n_done > deadline:
            log.warning("the time that was allowed is over; probe again to go on")
            return


def _adapt(run: Run, measurer: Measurer, n_configs: int, metric: str, deadline: float) -> None:
    adaptive = Adaptive(run, measurer, n_configs, metric)
    for _ in _until(deadline, track(adaptive.measure(), "probing", n_configs, cost=float)):
        pass
    write_json(run.folder / "probing.json", "probing", {**asdict(adaptive.outcome), **owner(run.folder)})
