"""Long tunings for the few plans that may win: asynchronous successive halving (Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning,
algorithm 2), by Optuna's pruner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from ..aq.formats import Format
from .evaluate import Candidate
from .optuna_solver import Keep, quiet
from .verify import FACTOR, Verification, loss_and_distance


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
        keep: what becomes of the study. Its values are places on a rung, 0 for the best.
    """

    left = dict(measured)
    with quiet():
        study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR))
        trials = {candidate: study.ask() for candidate in left}
        for place, rung in enumerate(verification.rungs):
            if place:
                left = dict(zip(left, verification.measure([plans[candidate] for candidate in left], rung), strict=True))
            order = sorted(left, key=lambda candidate: loss_and_distance(left[candidate], metric))
            for candidate in left:
                trials[candidate].report(order.index(candidate), FACTOR**place)
            if rung is verification.rungs[-1]:
                break
            for candidate in [candidate for candidate in left if trials[candidate].should_prune()]:
                study.tell(trials[candidate], state=optuna.trial.TrialState.PRUNED)
                del left[candidate]
        for candidate in left:
            study.tell(trials[candidate], order.index(candidate))
    if keep is not None:
        keep(study)
    return left
