"""The table of solvers. All take a problem and a predictor and hand back a Solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import InputError
from . import optuna_solver, swaps
from .evaluate import Candidate, Evaluator, Predictor
from .exact import solve_exact
from .problem import Choice, Problem
from .uniform import uniform_choices

N_TRIALS = 200
_N_CANDIDATES = 32


@dataclass(frozen=True)
class Solution:
    """The best predicted choice, how it was found, and those that come next."""

    choice: tuple[int, ...]
    mean: float
    std: float
    gap: float | None  # optimality gap of the additive part's exact solution
    solver: str  # which solver found it: exact, optuna, uniform, exact+swaps, …
    n_trials: int  # Optuna trials that were run
    candidates: tuple[Candidate, ...]  # distinct, the best first, then the best of every stage, then the rest by prediction


class Solver(Protocol):
    def __call__(
        self, problem: Problem, predictor: Predictor, *, seed: int = 0, n_trials: int = N_TRIALS, starts: Sequence[Choice] = ()
    ) -> Solution: ...


def _solution(evaluator: Evaluator, best: Candidate, *, gap: float | None, n_trials: int = 0, suffix: str = "") -> Solution:
    ranked = evaluator.best(len(evaluator.seen))
    stages = {candidate.found_by: candidate for candidate in reversed(ranked)}
    ordered = dict.fromkeys([best, *sorted(stages.values(), key=lambda candidate: candidate.mean), *ranked])
    return Solution(best.choice, best.mean, best.std, gap, best.found_by + suffix, n_trials, tuple(ordered)[:_N_CANDIDATES])


def _begin(problem: Problem, predictor: Predictor, *, seed: int, starts: Sequence[Choice]) -> tuple[Evaluator, list[Choice], float | None]:
    """Exact, given and uniform plans, evaluated; the first of them is the exact one."""
    choice, gap = solve_exact(problem)
    given = [start for start in starts if problem.fits(start)]
    uniform = uniform_choices(problem, seed=seed)
    evaluator = Evaluator(problem, predictor)
    for choices, name in (([choice], "exact"), (uniform, "uniform"), (given, "front")):
        evaluator(choices, name)
    return evaluator, [choice, *given, *uniform], gap


def exact(problem: Problem, predictor: Predictor, *, seed: int = 0, n_trials: int = 0, starts: Sequence[Choice] = ()) -> Solution:
    """Least sum of additive costs (exact.py); seed, trials and starts change nothing."""
    choice, gap = solve_exact(problem)
    evaluator = Evaluator(problem, predictor)
    return _solution(evaluator, evaluator([choice], "exact")[0], gap=gap)


def optuna(problem: Problem, predictor: Predictor, *, seed: int = 0, n_trials: int = N_TRIALS, starts: Sequence[Choice] = ()) -> Solution:
    """The best predicted of Optuna's trials and of the exact and uniform plans enqueued; above MAX_UNITS units swaps take its place."""
    if len(problem.units) > optuna_solver.MAX_UNITS:
        return auto(problem, predictor, seed=seed, n_trials=n_trials, starts=starts)
    evaluator, enqueued, gap = _begin(problem, predictor, seed=seed, starts=starts)
    best = optuna_solver.search(evaluator, enqueued, fallback=enqueued[0], seed=seed, n_trials=n_trials)
    return _solution(evaluator, best, gap=gap, n_trials=n_trials)


def auto(problem: Problem, predictor: Predictor, *, seed: int = 0, n_trials: int = N_TRIALS, starts: Sequence[Choice] = ()) -> Solution:
    """The best predicted of exact, Optuna (up to MAX_UNITS units) and uniform plans, and of swaps from the exact and the best one."""
    evaluator, enqueued, gap = _begin(problem, predictor, seed=seed, starts=starts)
    first, suffix = evaluator([enqueued[0]], "exact")[0], ""
    if len(problem.units) <= optuna_solver.MAX_UNITS:
        optuna_solver.search(evaluator, enqueued, fallback=enqueued[0], seed=seed, n_trials=n_trials)
    else:
        n_trials, suffix = 0, f" (no Optuna above {optuna_solver.MAX_UNITS} decisions)"
    for start in dict.fromkeys([first, evaluator.best()[0]]):
        swaps.improve(evaluator, start)
    return _solution(evaluator, evaluator.best()[0], gap=gap, n_trials=n_trials, suffix=suffix)


SOLVERS: dict[str, Solver] = {"exact": exact, "optuna": optuna, "auto": auto}


def solve(
    problem: Problem,
    predictor: Predictor,
    *,
    solver: str = "auto",
    seed: int = 0,
    n_trials: int = N_TRIALS,
    starts: Sequence[Choice] = (),
) -> Solution:
    """Run the solver called `solver`. `starts`: further choices to begin from; those above a budget are left out.

    Raises:
        InputError: unknown solver, or budgets that cannot be met together.
    """
    if solver not in SOLVERS:
        raise InputError(f"solver {solver!r} is unknown; choose one of {', '.join(SOLVERS)}")
    return SOLVERS[solver](problem, predictor, seed=seed, n_trials=n_trials, starts=[np.asarray(start) for start in starts])
