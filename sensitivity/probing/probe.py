"""The verb `probe`: measure what images lose when layers get few bits.

A probe is one assignment of menu entries to layers. Source: Qua²SeDiMo (Mills et al. 2025) draws random per-layer bits and measures Fréchet
distances; we draw over real encodings instead of simulated rounding, pair all probes by their noise, and keep paired measures and standard
errors beside the distance.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...progress import track
from ...storage import write_json
from ..metrics.registry import DEFAULT, metric_of
from ..run import Run, Settings
from .adaptive import Adaptive
from .designs import AUTO, check_design, design_plans
from .measurer import Measurer, PlanTask
from .prober import Prober


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
        n_configs: at most; a design of few plans may have less.
        design: "auto" (adaptive.py, which may stop earlier and says so in probing.json) or a name in designs.DESIGNS; a run may be probed by several, one after the other.
        metric: what the "auto" design goes by; all metrics are recorded.
        executor: "serial", or "processes:N" for N processes that share the measuring, each with an equal part of the processor's cores.
        memory_bytes: bound on a calibration pass; half of what is free when None.
    """
    opened = Run.begin(subject, run, settings or Settings(), device=device)
    probe_run(opened, n_configs=n_configs, design=design, metric=metric, executor=executor, memory_bytes=memory_bytes)
    return opened


def probe_run(
    opened: Run,
    *,
    n_configs: int = 64,
    design: str = "stratified",
    metric: str = DEFAULT,
    executor: str = "serial",
    memory_bytes: int | None = None,
) -> None:
    """`probe` of a run that is open, on disk or not yet."""
    if n_configs < 1:
        raise InputError(f"`configs` must be at least 1, got {n_configs}")
    check_design(design)
    metric_of(metric)
    measurer = Measurer(Prober(opened), executor)
    if not (opened.folder / "run.json").exists():  # settings that the sampler refuses are found before anything is written
        opened.subject.check(opened.settings.sampling)
    opened.write()
    opened.fill_store(memory_bytes)
    with measurer:
        if design == AUTO:
            _adapt(opened, measurer, n_configs, metric)
        else:
            plans = design_plans(design, opened.subject.layers, opened.menus, n_plans=n_configs, seed=opened.settings.seed)
            tasks = [PlanTask(plan, opened.settings.n_images) for plan in plans]
            n_stored = sum(measurer.is_stored(task) for task in tasks)
            new = islice(measurer.measure(tasks), n_stored, None)  # those that are stored come first
            for _ in track(new, "probing", len(tasks), done=n_stored):
                pass


def _adapt(run: Run, measurer: Measurer, n_configs: int, metric: str) -> None:
    adaptive = Adaptive(run, measurer, n_configs, metric)
    for _ in track(adaptive.measure(), "probing", n_configs, cost=float):
        pass
    write_json(run.folder / "probing.json", "probing", asdict(adaptive.outcome))
