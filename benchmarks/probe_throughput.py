"""Probes an hour, and what a probe costs beside its sampling:  python benchmarks/probe_throughput.py build/sensitivity/mnist-dit build/sensitivity/mnist-unet

Stratified plans that the run has not probed yet, of the run's own number of images and steps: by one process with all threads, whose sampling is timed, and by two
workers. The first plan of each (full precision, starting of processes) is not counted. Nothing is kept in the run.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from results import keep

from sedaq.cli.options import executor
from sedaq.kernels.timing import clock
from sedaq.sensitivity.probing.designs import design_plans
from sedaq.sensitivity.probing.measurer import Measurer, PlanTask
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.run import Run

N_PLANS, FIRST = 9, 400  # of a design that is long enough


def tasks_of(run: Run, purpose: str) -> list[PlanTask]:
    plans = design_plans("stratified", run.subject.layers, run.menus, n_plans=FIRST + N_PLANS, seed=run.settings.seed)[FIRST:]
    return [PlanTask(plan, run.settings.n_images, purpose) for plan in plans]


def alone(run: Run) -> dict[str, float]:
    """Medians of a probe's seconds and of the share that is not sampling."""
    prober = Prober(run)
    spent: list[float] = []
    sample = prober._sample

    def timed(*key: Any) -> Any:
        start = clock()
        images = sample(*key)
        spent.append(clock() - start)
        return images

    prober._sample = timed  # type: ignore[method-assign]
    seconds, shares = [], []
    with Measurer(prober) as measurer:
        measured = measurer.measure(tasks_of(run, "throughput"))
        next(measured)
        for start in iter(clock, None):
            if next(measured, None) is None:
                break
            seconds.append(clock() - start)
            shares.append(1 - spent[-1] / seconds[-1])
    return {"seconds": statistics.median(seconds), "beside_sampling": statistics.median(shares)}


def together(run: Run, workers: int) -> float:
    """Seconds a probe of several workers."""
    with Measurer(Prober(run), executor(workers)) as measurer:
        measured = measurer.measure(tasks_of(run, f"throughput{workers}"))
        for _ in range(workers):
            next(measured)
        start = clock()
        rest = len(list(measured))
    return (clock() - start) / rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    rows = []
    for folder in parser.parse_args().runs:
        with tempfile.TemporaryDirectory() as scratch:
            run = Run.open(shutil.copytree(folder, Path(scratch) / "run", ignore=shutil.ignore_patterns("features", "figures")))
            one, two = alone(run), together(run, 2)
        rows.append({"model": folder.name, **one, "probes_an_hour": 3600 / one["seconds"], "probes_an_hour_two_workers": 3600 / two})
        print(rows[-1], flush=True)
    keep("probe_throughput", "python benchmarks/probe_throughput.py build/sensitivity/mnist-dit build/sensitivity/mnist-unet", rows)


if __name__ == "__main__":
    main()
