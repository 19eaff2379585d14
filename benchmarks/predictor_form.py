"""Which transform of the metric an additive model predicts best:  python benchmarks/predictor_form.py RUN

Out-of-fold Spearman correlation over six folds of a run's probes, for powers of the Fréchet distance d, its logarithm, and powers of the
layers' relative output errors; no trees.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from results import keep
from scipy.stats import spearmanr

from sedaq.sensitivity.fitting import read_probes
from sedaq.sensitivity.predictor import RIDGES, fit_additive
from sedaq.sensitivity.run import Run

FOLDS = 6
TARGETS = {"d": lambda d: d, "√d": np.sqrt, "d^¼": lambda d: d**0.25, "log d": np.log}


def out_of_fold(errors: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    folds = np.arange(len(target)) % FOLDS
    predicted = np.empty(len(target))
    for fold in range(FOLDS):
        held = folds == fold
        predicted[held] = fit_additive(errors[~held], target[~held], ridge)(errors[held])
    return predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    probes = read_probes(Run.open(parser.parse_args().run), "fid")
    rows: list[dict[str, Any]] = []
    for target_name, transform in TARGETS.items():
        for power in (1.0, 0.5):
            target = transform(probes.values)
            scores = {ridge: spearmanr(out_of_fold(probes.errors**power, target, ridge), probes.values)[0] for ridge in RIDGES}
            rows.append({"target": target_name, "features": f"e^{power:g}", "n_probes": len(target), "spearman_by_ridge": scores})
    for name, values in (("summed errors", probes.errors.sum(1)), ("average bits", -probes.bits)):
        rows.append(
            {"target": name, "features": "", "n_probes": len(values), "spearman_by_ridge": {"": spearmanr(values, probes.values)[0]}}
        )
    for row in rows:
        print(row["target"], row["features"], {ridge: round(float(score), 3) for ridge, score in row["spearman_by_ridge"].items()})
    keep("predictor_form", "python benchmarks/predictor_form.py RUN", rows)


if __name__ == "__main__":
    main()
