"""What an executor costs, and what two workers bring:  python benchmarks/executors.py      → results/executors.json

Seconds of a probe of mnist-dit by one worker in another process or on a local Ray cluster, and by two, each with one thread, beside a probe in this process: both
take a few plans in turn, so that what else the machine does meets both. Kept are medians of the turns' ratios, and the share of the workers' time that is in no measurement by the
measurements' own clocks: what the executor itself costs. Probes have 128 images, a quarter of the default, so that costs weigh more. An idle machine with two cores is needed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from results import keep

from sedaq.kernels.timing import clock
from sedaq.sensitivity.probing.designs import design_plans
from sedaq.sensitivity.probing.measurer import Measurer, PlanTask
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings

CASES = (("processes:1", 1), ("ray:auto", 1), ("processes:2", 2), ("ray:auto", 2))


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


@dataclass(frozen=True)
class Turn:
    """Seconds of a probe in this process and on the executor; seconds of all workers, and those of their measurements."""

    serial: float
    other: float
    workers: float
    measuring: float


def turns_of(run: Run, executor: str, workers: int, turns: int, n_plans: int) -> list[Turn]:
    """Plans that bring workers up to full precision are not counted."""
    n_warm = 2 * workers
    plans = design_plans("stratified", run.subject.layers, run.menus, n_plans=n_warm + turns * n_plans, seed=run.settings.seed)
    purposes = {"serial": f"beside {executor} {workers}", executor: f"{executor} {workers}"}
    tasks = {name: [PlanTask(plan, run.settings.n_images, purpose) for plan in plans] for name, purpose in purposes.items()}
    found = []
    with slots(executor, workers), Measurer(Prober(run)) as here, Measurer(Prober(run), executor) as there:
        sides = {"serial": here, executor: there}
        for name, measurer in sides.items():
            list(measurer.measure(tasks[name][:n_warm]))
        for turn in range(turns):
            first, seconds, own = n_warm + turn * n_plans, {}, {}
            for name in sorted(sides, reverse=bool(turn % 2)):
                start = clock()
                measured = list(sides[name].measure(tasks[name][first : first + n_plans]))
                seconds[name], own[name] = clock() - start, sum(one.record["seconds"] for _, one in measured)
            found.append(Turn(seconds["serial"] / n_plans, seconds[executor] / n_plans, workers * seconds[executor], own[executor]))
            print(executor, workers, turn, found[-1], flush=True)
    return found


def row_of(executor: str, workers: int, turns: list[Turn]) -> dict[str, Any]:
    speedups = [turn.serial / turn.other for turn in turns]
    return {
        "executor": executor,
        "workers": workers,
        "serial_seconds": statistics.median(turn.serial for turn in turns),
        "seconds": statistics.median(turn.other for turn in turns),
        "speedups": speedups,
        "speedup": statistics.median(speedups),
        "outside": statistics.median(1 - turn.measuring / turn.workers for turn in turns),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--plans", type=int, default=4, help="of a turn")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--smoke", action="store_true", help="keep nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.begin("mnist-dit", Path(folder) / "run", Settings(n_images=arguments.images))
        run.write()
        run.fill_store()
        rows = [row_of(*case, turns_of(run, *case, arguments.turns, arguments.plans)) for case in CASES]
    for row in rows:
        print(row)
    if not arguments.smoke:
        conditions = {"images": arguments.images, "plans": arguments.plans, "turns": arguments.turns, "threads_of_a_worker": 1}
        keep("executors", "python benchmarks/executors.py", rows, conditions=conditions)


if __name__ == "__main__":
    main()
