"""Predictors judged on probes never seen, and on layers measured alone:  python benchmarks/sensitivity.py build/sensitivity/mnist-dit …

Reads runs that benchmarks/sensitivity_data.py made. Every predictor learns from the first 50 and from all 200 stratified probes and is judged on 100
plans with other noise; where the run holds layers measured alone, their ranking by the additive model is compared with that truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from results import keep
from threadpoolctl import threadpool_limits

from sedaq.errors import InputError
from sedaq.sensitivity.predictor.additive import fit_additive
from sedaq.sensitivity.predictor.cross_validation import OURS, PREDICTORS, interval, judge, noise_ceiling, spearman
from sedaq.sensitivity.predictor.ridge import choose_ridge
from sedaq.sensitivity.probing.layer_statistics import LayerStatistics
from sedaq.sensitivity.probing.probes import Probes, read_probes
from sedaq.sensitivity.run import Run

SIZES = (50, 200)
SEED = 0


def on_unseen(name: str, probes: Probes, unseen: Probes) -> list[dict[str, Any]]:
    """A row for every number of probes and predictor."""
    rows = []
    ceiling = noise_ceiling(unseen.halves)
    ceiling_ci = interval(lambda chosen: noise_ceiling(unseen.halves[chosen]), len(unseen), SEED)
    for size in SIZES:
        train = probes[np.arange(size)]
        predicted = {label: predict(train, unseen, SEED)[None] for label, predict in PREDICTORS.items()}
        scores = judge(predicted, unseen.values, SEED)
        ours = predicted[OURS][0]
        scores[OURS]["spearman_ci"] = interval(lambda chosen, ours=ours: spearman(ours[chosen], unseen.values[chosen]), len(unseen), SEED)
        for label, score in scores.items():
            of_ceiling = score["spearman"] / ceiling
            rows.append(
                {
                    "model": name,
                    "n_probes": size,
                    "predictor": label,
                    **score,
                    "n_unseen": len(unseen),
                    "ceiling": ceiling,
                    "ceiling_ci": ceiling_ci,
                    "of_ceiling": of_ceiling,
                }
            )
    return rows


def on_layers(name: str, run: Run, probes: Probes, truth: Probes) -> list[dict[str, Any]]:
    """Rank correlation of layers' costs, by the additive model fitted to mixed plans, with what each layer alone measured, one row a rate and one over all."""
    single = (truth.errors > 0).sum(1) == 1
    plans = truth[single]
    layer = plans.errors.argmax(1)
    rate = plans.rates[np.arange(len(plans)), layer]
    rows = []
    for size in SIZES:
        train = probes[np.arange(size)]
        ridge = choose_ridge(train.errors, train.labels, train.table.priors, SEED).ridge
        predicted = fit_additive(train.errors, train.labels, train.table.priors, ridge).excess(plans.errors)
        sets = {"all rates": np.ones(len(plans), bool), **{f"{r:g} bits": rate == r for r in np.unique(rate)}}
        for label, chosen in sets.items():
            clear = plans.labels.excess[chosen] > 2 * plans.labels.se[chosen]
            measured, said, halves = plans.labels.excess[chosen], predicted[chosen], plans.halves[chosen]
            rows.append(
                {
                    "model": name,
                    "n_probes": size,
                    "rates": label,
                    "n_plans": int(chosen.sum()),
                    "spearman": spearman(said, measured),
                    "spearman_ci": interval(lambda rows, a=said, b=measured: spearman(a[rows], b[rows]), len(said), SEED),
                    "ceiling": noise_ceiling(halves),
                    "above_noise": float(clear.mean()),
                    "predicted_over_measured": float(np.median(said[clear] / measured[clear])),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    unseen_rows: list[dict[str, Any]] = []
    truth_rows: list[dict[str, Any]] = []
    for folder in parser.parse_args().runs:
        run = Run.open(folder)
        statistics = LayerStatistics(run)
        with threadpool_limits(1):
            probes = read_probes(run, statistics=statistics)
            unseen_rows += on_unseen(folder.name, probes, read_probes(run, purpose="unseen", statistics=statistics))
            try:
                truth = read_probes(run, purpose="truth", statistics=statistics)
            except InputError:
                print(f"{folder}: no layers measured alone")
                continue
            truth_rows += on_layers(folder.name, run, probes, truth)
    for row in [*unseen_rows, *truth_rows]:
        print(
            " ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items() if key != "command"
            )
        )
    keep("sensitivity", "python benchmarks/sensitivity.py build/sensitivity/mnist-dit build/sensitivity/mnist-unet", unseen_rows)
    if truth_rows:
        keep("sensitivity_truth", "python benchmarks/sensitivity.py build/sensitivity/mnist-dit", truth_rows)


if __name__ == "__main__":
    main()
