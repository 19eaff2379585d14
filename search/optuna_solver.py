"""Optuna on the full predictor: TPE over ordered integers, one a unit, decoded to within the budgets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import optuna

from .evaluate import Candidate, Evaluator
from .problem import Choice
from .repair import repair

MAX_UNITS = 64  # above, TPE has too many dimensions for the trials that are affordable
_BATCH = 8  # trials asked for at once: one call of the predictor


@contextmanager
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def search(evaluator: Evaluator, starts: Sequence[Choice], *, fallback: Choice, seed: int, n_trials: int) -> Candidate:
    """The best of `n_trials` trials and of `starts`, which are enqueued first.

    Multivariate TPE (Bergstra et al. 2011; Falkner et al. 2018), in memory, in one process: the same seed gives the same plan. A trial
    names an option for each unit; `repair` decodes it, so that every trial is within the budgets, and the constraint says by how much.

    Args:
        starts: choices within the budgets.
        fallback: a choice within the budgets, for trials that cannot be repaired.
    """
    problem = evaluator.problem
    evaluator(starts, "start")
    with _quiet():
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=max(10, n_trials // 10))
        study = optuna.create_study(sampler=sampler)
        for start in starts[:n_trials]:
            study.enqueue_trial({str(unit): int(option) for unit, option in enumerate(start)}, skip_if_exists=True)
        for first in range(0, n_trials, _BATCH):
            trials = [study.ask() for _ in range(min(_BATCH, n_trials - first))]
            decoded = []
            for trial in trials:
                options = [trial.suggest_int(str(unit), 0, int(n) - 1) for unit, n in enumerate(problem.n_options)]
                decoded.append(repair(problem, np.array(options), fallback=fallback))
                for budget, excess in enumerate(problem.used(decoded[-1]) / np.maximum(problem.limits, 1) - 1):
                    trial.set_constraint(f"budget {budget}", excess)
            for trial, candidate in zip(trials, evaluator(decoded, "optuna"), strict=True):
                study.tell(trial, candidate.mean)
    return evaluator.best()[0]
