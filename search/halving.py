"""Long tunings for the few plans that may win: asynchronous successive halving (Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning,
algorithm 2), by Optuna's pruner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna

from ..aq.formats import Format
from ..sensitivity.metrics.registry import metric_of
from .evaluate import Candidate
from .optuna_solver import Keep, quiet
from .verify import FACTOR, Verification


def halve(
    verification: Verification,
    plans: Mapping[Candidate, Mapping[str, Format]],
    measured: Mapping[Candidate, Any],
    metric: str,
    keep: Keep | None = None,
) -> dict[Candidate, Any]:
    """Measurements on the last rung, of the plans that reach it. A plan goes on that is in the best third of those that raced so far, or is the first.

    Args:
        measured: on the first rung, in the order in which plans race.
        keep: what becomes of the study.
    """

    def cost(measurement: Any) -> float:
        value = metric_of(metric).sign * float(measurement.metrics[metric].value)
        return value if math.isfinite(value) else math.inf  # of what is no number Optuna would stop even the only one

    left = dict(measured)
    with quiet():
        study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR))
        trials = {candidate: study.ask() for candidate in left}
        for place, rung in enumerate(verification.rungs):
            if place:
                left = dict(zip(left, verification.measure([plans[candidate] for candidate in left], rung), strict=True))
            for candidate, measurement in left.items():
                trials[candidate].report(cost(measurement), FACTOR**place)
            if rung is verification.rungs[-1]:
                break
            for candidate in [candidate for candidate in left if trials[candidate].should_prune()]:
                study.tell(trials[candidate], state=optuna.trial.TrialState.PRUNED)
                del left[candidate]
        for candidate, measurement in left.items():
            study.tell(trials[candidate], cost(measurement))
    if keep is not None:
        keep(study)
    return left
