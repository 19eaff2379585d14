"""Searched plans beside what others do, the final figures:  python benchmarks/search.py build/sensitivity/mnist-dit --workers 2

Of each run that benchmarks/sensitivity_data.py made and `sedaq fit` fitted: 2,000 images at 20 steps from each of three noise seeds that nothing
was chosen on, all methods at 1.5 and 2 bits, uniform alone at 2.5, 3 and 4; → benchmarks/results/search_SUBJECT.json. What was measured is read
back, so that it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from results import keep

from sedaq.cli.options import executor
from sedaq.progress import shown
from sedaq.search.baselines import UNIFORM
from sedaq.search.bench import bench_search
from sedaq.sensitivity.run import Run

LOW, HIGH = (1.5, 2.0), (2.5, 3.0, 4.0)
N_RANDOM = 40  # with as many samplings as five budgets' shares of 200 probes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--random", type=int, default=N_RANDOM)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    for folder in arguments.runs:
        run = Run.open(folder)
        with shown():
            rows = bench_search(run, bits=LOW, n_random=arguments.random, executor=executor(arguments.workers))
            rows += bench_search(run, bits=HIGH, methods=[UNIFORM], executor=executor(arguments.workers))
        keep(f"search_{run.subject.name}", f"python benchmarks/search.py build/sensitivity/{run.subject.name}", rows)


if __name__ == "__main__":
    main()
