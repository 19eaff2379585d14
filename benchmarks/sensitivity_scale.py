"""Fitting and explaining a model of SDXL's size:  python benchmarks/sensitivity_scale.py

803 layers of 8 entries, 500 probes of a known additive model with interactions between neighbours and with noise: seconds and peak memory of the fit with its
cross-validation and of the explanation, and how well the known order of layers comes back.
"""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
from results import keep
from threadpoolctl import threadpool_limits

from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import Entry
from sedaq.kernels.timing import clock
from sedaq.sensitivity.explanation.explanation import Explanation, fitted_surrogates, group_rows, interaction_rows, stability
from sedaq.sensitivity.explanation.findings import findings
from sedaq.sensitivity.predictor.additive import Additive, Labels, LayerPriors
from sedaq.sensitivity.predictor.cross_validation import OURS, cross_validate, judge, spearman
from sedaq.sensitivity.predictor.predictor import Predictor
from sedaq.sensitivity.probing.probes import LayerTable, Probes

N_LAYERS, N_PROBES, SEED = 803, 500, 0
RATES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 8.0, 16.0)
ROLES = (
    "attention query",
    "attention key",
    "attention value",
    "attention output",
    "feed-forward in",
    "feed-forward out",
    "residual conv 1",
)


def synthetic() -> tuple[Probes, list[list[Entry]], np.ndarray, Additive]:
    """Probes, menus, errors (layers, entries), and the additive model before interactions."""
    rng = np.random.default_rng(SEED)
    base = np.exp(rng.normal(-3.5, 1.0, N_LAYERS))
    errors = base[:, None] * 2.0 ** (-1.9 * (np.array(RATES) - 1.5))
    errors[:, -1] = 0
    menus = [[Entry(rate, Format("asis") if rate == 16 else Format.parse(f"1x{k + 3}g2"), k, k) for k, rate in enumerate(RATES)]] * N_LAYERS
    logs = np.log(errors[:, :-1]).mean(1)
    slopes = rng.normal(-4.0, 1.2, N_LAYERS)
    surrogate = Additive.straight(slopes, rng.normal(1.2, 0.15, N_LAYERS), 1.5, 1.0, logs)
    low = (np.arange(N_PROBES) + 0.5) / N_PROBES
    picks = np.where(
        rng.random((N_PROBES, N_LAYERS)) < low[:, None], rng.integers(0, 4, (N_PROBES, N_LAYERS)), rng.integers(4, 8, (N_PROBES, N_LAYERS))
    )
    picks[0] = len(RATES) - 1
    of_plans = errors[np.arange(N_LAYERS), picks]
    terms = surrogate.terms(of_plans)
    together = terms.sum(1) + 3 * np.sqrt(terms[:, :-1] * terms[:, 1:]).sum(1)  # neighbours hurt each other
    truth = surrogate.of_total(together)
    halves = truth[:, None] * np.exp(0.05 * rng.normal(size=(N_PROBES, 2))) + 0.05 * rng.normal(size=(N_PROBES, 2))
    scores = [np.exp(2 * slopes[i] + rng.normal(0, 1.0)) * errors[i] for i in range(N_LAYERS)]
    roles = [ROLES[i % len(ROLES)] for i in range(N_LAYERS)]
    blocks = [f"blocks.{i // 12}" for i in range(N_LAYERS)]
    table = LayerTable([f"{block}.{i}" for i, block in enumerate(blocks)], roles, blocks, LayerPriors.of(list(errors), scores))
    rates = np.array(RATES)[picks]
    labels = Labels.of(halves.mean(1), 0.04 * truth + 0.04, 4.0)
    probes = Probes([str(i) for i in range(N_PROBES)], table, rates, of_plans, of_plans, of_plans, rates.mean(1), labels, halves)
    return probes, menus, errors, surrogate


def main() -> None:
    probes, menus, errors, surrogate = synthetic()
    rows: list[dict[str, Any]] = []
    with threadpool_limits(1):
        start = clock()
        predicted = cross_validate(probes, SEED)
        scores = judge(predicted, probes.values, SEED)
        predictor = Predictor.fit("fid", probes, error_of=lambda *_: 0.0, seed=SEED)
        fitted = clock()
        surrogates = fitted_surrogates(probes, predictor.ridge, SEED)
        explanation = Explanation(probes, menus, errors, surrogates[0], surrogates[1:])
        tables = [group_rows(explanation), interaction_rows(explanation, predictor)]
        contributions, rest = predictor.contributions(probes.errors, probes.rates)
        steady = stability(probes, errors[:, 0], predictor.ridge, SEED)
        said = findings(explanation, "Fréchet distance", (0.9, 1.0))
        explained = clock()
    off = np.abs(contributions.sum(1) + rest - predictor.predict_members(probes.errors, probes.rates).mean(0)).max()
    rows.append(
        {
            "layers": N_LAYERS,
            "probes": N_PROBES,
            "seconds_fit_with_cross_validation": round(fitted - start, 1),
            "seconds_explanation": round(explained - fitted, 1),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "spearman_by_predictor": {name: score["spearman"] for name, score in scores.items()},
            "behind_ci": {name: score["behind_ci"] for name, score in scores.items() if name != OURS},
            "layers_ranked": spearman(explanation.surrogate.terms(errors[:, 0]), surrogate.terms(errors[:, 0])),
            "stability": steady,
            "contributions_off_by": float(off),
            "rows_of_tables": [len(table) for table in tables],
            "findings": len(said),
        }
    )
    print(rows[0])
    keep("sensitivity_scale", "python benchmarks/sensitivity_scale.py", rows)


if __name__ == "__main__":
    main()
