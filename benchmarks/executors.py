"""What an executor costs, and what two workers bring:  python benchmarks/executors.py      → results/executors.json

Seconds of a probe of mnist-dit on each executor, every worker with one thread: one worker in this process, in another and on a local Ray cluster; then two
workers. Plans are stratified ones, each measured once; those until every worker has sampled in full precision are not counted. Executors take turns, and medians over the
turns are kept. An idle machine with two cores is needed. With 128 images a probe takes a quarter of what it does by default, so that its share of costs is shown at its worst.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from results import keep

from sedaq.kernels.timing import clock
from sedaq.sensitivity.probing.designs import design_plans
from sedaq.sensitivity.probing.measurer import Measurer, PlanTask
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.run import Run, Settings

CASES = (("serial", 1), ("processes:1", 1), ("ray:auto", 1), ("processes:2", 2), ("ray:auto", 2))


@contextmanager
def slots(executor: str, workers: int) -> Iterator[None]:
    """A local Ray cluster of so many workers, where the executor is Ray's."""
    if executor != "ray:auto":
        yield
        return
    import ray

    ray.init("local", num_cpus=workers, num_gpus=0, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def seconds_of_a_probe(run: Run, executor: str, workers: int, turn: int, n_plans: int) -> float:
    """Of `n_plans` plans that were never measured, divided by the workers that share them."""
    first = n_plans * turn
    plans = design_plans("stratified", run.subject.layers, run.menus, n_plans=first + n_plans, seed=run.settings.seed)[first:]
    tasks = [PlanTask(plan, run.settings.n_images, f"executors {executor} {workers} {turn}") for plan in plans]
    with slots(executor, workers), Measurer(Prober(run), executor) as measurer:
        measured = measurer.measure(tasks)
        for _ in range(2 * workers):  # by then each has begun its second
            next(measured)
        start = clock()
        rest = len(list(measured))
    return (clock() - start) / rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--plans", type=int, default=14, help="of a turn")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--smoke", action="store_true", help="keep nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, int], list[float]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        run = Run.begin("mnist-dit", Path(folder) / "run", Settings(n_images=arguments.images))
        run.write()
        run.fill_store()
        for turn in range(arguments.turns):
            for case in CASES:
                found[case].append(seconds_of_a_probe(run, *case, turn, arguments.plans))
                print(turn, *case, found[case][-1], flush=True)
    medians = {case: statistics.median(seconds) for case, seconds in found.items()}
    rows: list[dict[str, Any]] = [
        {
            "executor": executor,
            "workers": workers,
            "seconds": medians[executor, workers],
            "of_turns": found[executor, workers],
            "overhead": medians[executor, workers] / medians["serial", 1] - 1 if workers == 1 else None,
            "speedup": medians["serial", 1] / medians[executor, workers],
            "speedup_over_one": None if workers == 1 else medians[executor.replace("2", "1"), 1] / medians[executor, workers],
        }
        for executor, workers in CASES
    ]
    for row in rows:
        print(row)
    if not arguments.smoke:
        conditions = {"images": arguments.images, "plans": arguments.plans, "turns": arguments.turns, "threads_of_a_worker": 1}
        keep("executors", "python benchmarks/executors.py", rows, conditions=conditions)


if __name__ == "__main__":
    main()
