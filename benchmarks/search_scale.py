"""Searching a model of SDXL's size:  python benchmarks/search_scale.py

803 layers of 8 entries and the predictor of benchmarks/sensitivity_scale.py, fitted to 500 probes: seconds of the exact solver at each budget and
its gap, of the whole front with Optuna, of one more budget after it; how far what is found lies above the exact bound of the additive part; and
what each stage gained.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from results import keep
from sensitivity_scale import N_LAYERS, RATES, SEED, synthetic
from threadpoolctl import threadpool_limits
from torch import nn

from sedaq.aq.menu import Entry, ruled_menus
from sedaq.models.subject import Subject
from sedaq.progress import shown
from sedaq.search.engine import Search
from sedaq.search.exact import solve_exact
from sedaq.search.find import FRONT_BITS, find_front
from sedaq.search.uniform import uniform_choice
from sedaq.sensitivity.predictor import Predictor

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


def main() -> None:
    probes, _, errors, _ = synthetic()
    rank = {name: row for row, name in enumerate(probes.table.names)}

    def error_of(name: str, entry: Entry) -> float:
        return float(errors[rank[name], RATES.index(entry.rate)])

    with threadpool_limits(1), shown():
        predictor = Predictor.fit("fid", probes, error_of=error_of, seed=SEED)
        subject = model(list(probes.table.names))
        menus = ruled_menus(subject)
        search = Search.of(subject, menus, predictor, {})
        rows: list[dict[str, Any]] = []
        problem = search.problem
        for bits in FRONT_BITS:
            budget = problem.bounded(bits=bits)
            tight = problem.within(budget.like(uniform_choice(budget), "weight_bytes", "file_bytes"))
            start = time.perf_counter()
            choice, gap = solve_exact(tight)
            rows.append({"what": "exact", "bits": bits, "seconds": time.perf_counter() - start, "gap": gap, "sum": problem.cost(choice)})
        start = time.perf_counter()
        front = find_front(subject, menus, predictor)
        rows.append({"what": "front", "seconds": time.perf_counter() - start, "plans": len(front), "trees": predictor.n_trees})
        for found in front:
            kept = found.plan.provenance
            rows.append(
                {"what": "plan of the front", "bits": found.plan.bits_per_weight, "solver": found.solver}
                | {"predicted": found.predicted, "uniform_predicted": found.uniform_predicted, "gap": kept["gap"], "gains": kept["gains"]}
            )
        start = time.perf_counter()
        search.find({"bits_per_weight": 2.6})
        rows.append({"what": "one more budget, without Optuna", "seconds": time.perf_counter() - start})
        start = time.perf_counter()
        search.find({"bits_per_weight": 2.6}, n_trials=search.n_trials)
        rows.append({"what": "one more budget, with Optuna", "seconds": time.perf_counter() - start})
    for row in rows:
        print(row)
    keep("search_scale", "python benchmarks/search_scale.py", rows)


if __name__ == "__main__":
    main()
