"""What each part of the predictor's additive model is worth:  python benchmarks/predictor_parts.py build/sensitivity/mnist-dit build/sensitivity/mnist-unet

Out-of-fold rank correlation and error of a run's probes, by how many were learnt from, with one part left out at a time; and where the run has every layer
alone (sensitivity_data.py --truth), predicted over measured of what is clear of noise. Ridge 0.3, no trees.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from results import keep
from threadpoolctl import threadpool_limits

from sedaq.errors import InputError
from sedaq.sensitivity.predictor import additive
from sedaq.sensitivity.predictor.additive import LayerPriors, fit_additive
from sedaq.sensitivity.predictor.cross_validation import spearman
from sedaq.sensitivity.probing.probes import Probes, read_probes
from sedaq.sensitivity.run import Run

RIDGE, REPEATS, SIZES = 0.3, 4, (12, 25, 50, 160)
FIXED = 1e6  # a certainty that nothing overcomes


@contextmanager
def constants(**values: Any) -> Iterator[None]:
    """Run the block with other constants of additive.py."""
    before = {name: getattr(additive, name) for name in values}
    try:
        for name, value in values.items():
            setattr(additive, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(additive, name, value)


def without_scores(probes: Probes) -> Probes:
    priors = probes.table.priors
    return replace(probes, table=replace(probes.table, priors=LayerPriors(priors.log_errors, priors.log_errors)))


def without_floor(probes: Probes) -> Probes:
    """The logarithm of the distance itself instead of that of its excess."""
    return replace(probes, labels=replace(probes.labels, floor=probes.full_precision))


def certain(*places: int) -> np.ndarray:
    """Certainties by which the common numbers at these places stay where their priors have them."""
    certainties = additive.CERTAINTY.copy()
    certainties[list(places)] = FIXED
    return certainties


VARIANTS: dict[str, tuple[dict[str, Any], Any]] = {
    "additive model": ({}, lambda probes: probes),
    "errors in place of gradient scores": ({}, without_scores),
    "no piecewise-linear offsets": ({"OFFSET_RIDGE": FIXED}, lambda probes: probes),
    "terms add up (r = 1)": ({"CERTAINTY": certain(2)}, lambda probes: probes),
    "a power everywhere (no saturation scale)": (
        {"CERTAINTY": certain(4), "PRIOR_SATURATION": 1e-6},
        lambda probes: probes,
    ),
    "log of the distance, not of its excess": ({}, without_floor),
    "all labels weighted equally": ({"RESIDUAL": FIXED}, lambda probes: probes),
}


def alone(run: Run) -> Probes | None:
    """Plans that lower one layer, and measured more than twice their standard error."""
    try:
        truth = read_probes(run, purpose="truth")
    except InputError:
        return None
    return truth[((truth.errors > 0).sum(1) == 1) & (truth.labels.excess > 2 * truth.labels.se)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    rows: list[dict[str, Any]] = []
    for folder in parser.parse_args().runs:
        run = Run.open(folder)
        all_probes, single = read_probes(run), alone(run)
        for label, (values, change) in VARIANTS.items():
            probes = change(all_probes)
            for size in SIZES:
                found, ratios = [], []
                with constants(**values), threadpool_limits(1):
                    for repeat in range(REPEATS):
                        order = np.random.default_rng([size, repeat]).permutation(len(probes))
                        train, test = probes[order[:size]], probes[order[size:]]
                        surrogate = fit_additive(train.errors, train.labels, train.table.priors, RIDGE)
                        predicted = surrogate.excess(test.errors)
                        off = np.median(np.abs(np.log((predicted + test.full_precision) / test.values)))
                        found.append((spearman(predicted, test.values), off))
                        if single is not None:
                            ratios.append(np.median(surrogate.excess(single.errors) / single.labels.excess))
                correlation, off = np.mean(found, axis=0)
                rows.append(
                    {
                        "model": folder.name,
                        "variant": label,
                        "n_probes": size,
                        "spearman": float(correlation),
                        "median_log_error": float(off),
                        "alone_over_measured": float(np.mean(ratios)) if ratios else None,
                    }
                )
                print(rows[-1], flush=True)
    keep("predictor_parts", "python benchmarks/predictor_parts.py build/sensitivity/mnist-dit build/sensitivity/mnist-unet", rows)


if __name__ == "__main__":
    main()
