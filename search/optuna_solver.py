"""Optuna on the full predictor: TPE for one budget, NSGA-II for the whole front. Both in memory and in one process: a seed gives one result.

A trial names an option for each unit where units are few, else a factor for each group of units (prices.py); all are ordered integers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend

from ..errors import InputError
from .evaluate import Candidate, Evaluator
from .prices import STEPS, Prices, groups_of
from .problem import Choice, Problem
from .repair import repair

MAX_UNITS = 64  # above, TPE has too many dimensions for the trials that are affordable
PRICE_STEPS = 64  # of a front's price
_BATCH = 8  # trials asked for at once: one call of the predictor
_POPULATION = 50
Keep = Callable[[optuna.Study], None]  # what becomes of a study that is done


@contextmanager
def quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def copy_to(storage: str, name: str) -> Keep:
    """Keep a copy of a study called `name` in `storage`, a journal file or the URL of a database, in place of an earlier one.

    It is for looking at (optuna-dashboard); nothing is read back from it. Raises InputError where it cannot be written.
    """

    def keep(study: optuna.Study) -> None:
        try:
            with quiet():
                place = _storage(storage)
                if name in optuna.get_all_study_names(place):
                    optuna.delete_study(study_name=name, storage=place)
                copy = optuna.create_study(study_name=name, storage=place, directions=study.directions)
                copy.add_trials(study.get_trials(deepcopy=False))
        except Exception as error:  # whatever the database's driver raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"`storage` {storage}: {reason}; give a journal file or a URL such as sqlite:///studies.db") from error

    return keep


def _storage(text: str) -> optuna.storages.BaseStorage:
    if "://" in text:
        return optuna.storages.RDBStorage(text)
    Path(text).parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(JournalFileBackend(text))


def search(
    evaluator: Evaluator, starts: Sequence[Choice], *, fallback: Choice, seed: int, n_trials: int, keep: Keep | None = None
) -> Candidate:
    """The best of `n_trials` trials and of `starts`.

    Multivariate TPE (Bergstra et al. 2011; Falkner et al. 2018). Every trial is decoded to within the budgets, and its constraint says by how
    much. Starts are enqueued where a trial names options; else the trial that is enqueued has the exact solver's price for all.

    Args:
        starts: choices within the budgets.
        fallback: a choice within the budgets, for trials that cannot be repaired.
    """
    problem = evaluator.problem
    evaluator(starts, "start")
    if len(problem.units) <= MAX_UNITS:
        ranges = {unit.names[0]: int(n) - 1 for unit, n in zip(problem.units, problem.n_options, strict=True)}
        first = [list(map(int, start)) for start in starts]

        def decode(values: list[int]) -> Choice:
            return repair(problem, np.array(values), fallback=fallback)
    else:
        prices = Prices(problem, groups_of(problem.units))
        ranges, first = dict.fromkeys(prices.labels, STEPS), [[STEPS // 2] * prices.n_variables]

        def decode(values: list[int]) -> Choice:
            return prices.within(values, fallback)

    with quiet():
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=max(10, n_trials // 10))
        study = optuna.create_study(sampler=sampler)
        for values in first[:n_trials]:
            study.enqueue_trial(dict(zip(ranges, values, strict=True)), skip_if_exists=True)
        for begin in range(0, n_trials, _BATCH):
            trials = [study.ask() for _ in range(min(_BATCH, n_trials - begin))]
            decoded = [decode(_suggested(trial, ranges)) for trial in trials]
            for trial, choice in zip(trials, decoded, strict=True):
                for budget, excess in enumerate(problem.used(choice) / np.maximum(problem.limits, 1) - 1):
                    trial.set_constraint(f"budget {budget}", excess)
            for trial, candidate in zip(trials, evaluator(decoded, "optuna"), strict=True):
                study.tell(trial, candidate.score)
    if keep is not None:
        keep(study)
    return evaluator.best()[0]


def sweep(evaluator: Evaluator, *, seed: int, n_trials: int, keep: Keep | None = None) -> list[Candidate]:
    """What NSGA-II (Deb et al. 2002) sees of the front between bytes of the weights and score, in `n_trials` trials without a budget.

    A trial names a price of bytes and a factor for each unit, or group of units; the first population has all factors at 1, which is the
    additive front.
    """
    problem = evaluator.problem
    few = len(problem.units) <= MAX_UNITS
    prices = Prices(problem, np.arange(len(problem.units)) if few else groups_of(problem.units))
    low, high = prices.log_prices
    ranges = {"price of bytes": PRICE_STEPS, **dict.fromkeys(prices.labels, STEPS)}
    found: dict[Candidate, None] = {}
    with quiet():
        sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=_POPULATION)
        study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
        for price in np.linspace(0, PRICE_STEPS, min(_POPULATION, n_trials)).round():
            study.enqueue_trial(dict(zip(ranges, [int(price), *[STEPS // 2] * prices.n_variables], strict=True)))
        for begin in range(0, n_trials, _POPULATION):
            trials = [study.ask() for _ in range(min(_POPULATION, n_trials - begin))]
            named = [_suggested(trial, ranges) for trial in trials]
            choices = [prices.at(values[1:], low + (high - low) * values[0] / PRICE_STEPS) for values in named]
            for trial, candidate in zip(trials, evaluator(choices, "optuna"), strict=True):
                found[candidate] = None
                study.tell(trial, [problem.total("weight_bytes", np.array(candidate.choice)), candidate.score])
    if keep is not None:
        keep(study)
    return list(found)


def _suggested(trial: optuna.Trial, ranges: Mapping[str, int]) -> list[int]:
    return [trial.suggest_int(name, 0, most) for name, most in ranges.items()]


def fitting(problem: Problem, candidates: Sequence[Candidate], n: int) -> list[Choice]:
    """The n of least score among those within the budgets."""
    within = [candidate for candidate in candidates if problem.fits(np.array(candidate.choice))]
    return [np.array(candidate.choice) for candidate in sorted(within, key=lambda candidate: candidate.score)[:n]]
