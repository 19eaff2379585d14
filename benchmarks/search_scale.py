"""Searching a model of SDXL's size:  python benchmarks/search_scale.py [RUN ...]

803 layers of 8 entries and the predictor of benchmarks/sensitivity_scale.py, fitted to 500 probes: seconds of the exact solver at each budget and
its gap, of the whole front with Optuna, of one more budget after it; and what each stage gained. The same of fitted runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import keep
from sensitivity_scale import N_LAYERS, RATES, SEED, synthetic
from threadpoolctl import threadpool_limits
from torch import nn

from sedaq.aq.plans.menu import Entry, heuristic_menus
from sedaq.kernels.timing import clock
from sedaq.models.subject import Subject
from sedaq.progress import shown
from sedaq.search.engine import Search
from sedaq.search.exact import solve_exact
from sedaq.search.find import FRONT_BITS, find_front
from sedaq.search.uniform import uniform_choice
from sedaq.sensitivity.predictor.fitting import load_predictor
from sedaq.sensitivity.predictor.predictor import Predictor
from sedaq.sensitivity.run import Run

WIDTHS = (64, 96, 128, 192, 256)  # as much a spread of sizes as SDXL's layers have, a hundredth of their weights


def model(names: list[str]) -> Subject:
    """Linear layers by these paths."""
    rng = np.random.default_rng(SEED)
    root = nn.Module()
    for name in names:
        parent, *path = root, *name.split(".")
        for part in path[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(path[-1], nn.Linear(*(int(width) for width in rng.choice(WIDTHS, 2))))
    stored = dict.fromkeys(root.state_dict(), torch.float16)
    return Subject(root, sample=lambda **_: torch.zeros(1, 1, 1, 1), name=f"{N_LAYERS} layers", stored_dtypes=stored)


def timed(what: str, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    start = clock()
    return work(), {"what": what, "seconds": clock() - start}


def rows_of(search: Search) -> list[dict[str, Any]]:
    """Of one model: the exact solver at every budget, the front and its plans, and one more budget."""
    problem, rows, name = search.problem, [], search.subject.name
    for bits in FRONT_BITS:
        budget = problem.bounded(bits=max(bits, float(problem.min_bits_text)))
        tight = problem.within(budget.like(uniform_choice(budget), "weight_bytes", "file_bytes"))
        (choice, gap), row = timed("exact", partial(solve_exact, tight))
        rows.append({**row, "bits": bits, "gap": gap, "sum": problem.cost(choice)})
    front, row = timed("front", lambda: find_front(search.subject, search.menus, search.predictor))
    rows.append({**row, "plans": len(front)})
    for found in front:
        kept = found.plan.provenance
        rows.append(
            {"what": "plan of the front", "bits": found.plan.bits_per_weight, "solver": found.solver}
            | {"predicted": found.predicted, "uniform_predicted": found.uniform_predicted, "gap": kept["gap"], "gains": kept["gains"]}
        )
    rows.append(timed("one more budget, without Optuna", lambda: search.find({"bits_per_weight": 2.6}))[1])
    _, row = timed("one more budget, with Optuna", lambda: search.find({"bits_per_weight": 2.6}, n_trials=search.n_trials))
    return [{"model": name, **row} for row in [*rows, row]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="fitted runs to time as well")
    arguments = parser.parse_args()
    probes, _, errors, _ = synthetic()
    rank = {name: row for row, name in enumerate(probes.table.names)}

    def error_of(name: str, entry: Entry) -> float:
        return float(errors[rank[name], RATES.index(entry.rate)])

    with threadpool_limits(1), shown():
        predictor = Predictor.fit("fid", probes, error_of=error_of, seed=SEED)
        subject = model(list(probes.table.names))
        rows = rows_of(Search.of(subject, heuristic_menus(subject), predictor, {}))
        for folder in arguments.runs:
            run = Run.open(folder)
            rows += rows_of(Search.of(run.subject, run.menus, load_predictor(run), {}))
    for row in rows:
        print(row)
    keep("search_scale", "python benchmarks/search_scale.py build/sensitivity/mnist-dit build/sensitivity/mnist-unet", rows)


if __name__ == "__main__":
    main()
