"""The table of solvers. All take an evaluator, which holds problem and predictor, and hand back a Solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import InputError
from . import optuna_solver, swaps
from .config import N_TRIALS
from .evaluate import Candidate, Evaluator
from .exact import solve_exact
from .optuna_solver import Keep
from .problem import Choice
from .uniform import uniform_choices

_N_CANDIDATES = 32


@dataclass(frozen=True)
class Solution:
    """The choice of best score, how it was found, and those that come next."""

    best: Candidate
    gap: float | None  # optimality gap of the additive part's exact solution
    n_trials: int  # Optuna trials that were run
    gains: dict[str, float]  # by how much each stage lowered the best score, in the order of the stages
    candidates: tuple[Candidate, ...]  # distinct, the best first, then the best of every stage, then the rest by score

    @property
    def solver(self) -> str:
        """The stage that found it: exact, optuna, uniform, front, exact+swaps, …"""
        return self.best.found_by


@dataclass(frozen=True)
class Effort:
    """What a search may spend, and what it starts from."""

    seed: int = 0
    n_trials: int = N_TRIALS
    starts: Sequence[Choice] = ()
    keep: Keep | None = None


class Solver(Protocol):
    def __call__(self, evaluator: Evaluator, effort: Effort) -> Solution: ...


@dataclass
class _Stages:
    """Exact, given and uniform plans, and what later stages add to them."""

    evaluator: Evaluator
    effort: Effort
    gap: float | None = None
    n_trials: int = 0
    gains: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = self.evaluator.problem
        choice, self.gap = solve_exact(problem)
        given = [start for start in self.effort.starts if problem.fits(start)]
        uniform = uniform_choices(problem, seed=self.effort.seed)
        self.exact = self.evaluator([choice], "exact")[0]
        self.evaluator(uniform, "uniform")
        if given:
            before = self.evaluator.best()[0]
            self.evaluator(given, "front")
            self._gained("front", before)
        self.enqueued = [choice, *given, *uniform]

    def optuna(self) -> None:
        self.n_trials = self.effort.n_trials
        if not self.n_trials:
            return
        before = self.evaluator.best()[0]
        optuna_solver.search(
            self.evaluator,
            self.enqueued,
            fallback=self.enqueued[0],
            seed=self.effort.seed,
            n_trials=self.n_trials,
            keep=self.effort.keep,
        )
        self._gained("optuna", before)

    def swaps(self) -> None:
        before = self.evaluator.best()[0]
        for start in dict.fromkeys([self.exact, before]):
            swaps.improve(self.evaluator, start)
        self._gained("swaps", before)

    def _gained(self, stage: str, before: Candidate) -> None:
        self.gains[stage] = before.score - self.evaluator.best()[0].score

    @property
    def solution(self) -> Solution:
        ranked = self.evaluator.best(len(self.evaluator.seen))
        stages = {candidate.found_by: candidate for candidate in reversed(ranked)}
        ordered = dict.fromkeys([ranked[0], *sorted(stages.values(), key=lambda candidate: candidate.score), *ranked])
        return Solution(ranked[0], self.gap, self.n_trials, self.gains, tuple(ordered)[:_N_CANDIDATES])


def exact(evaluator: Evaluator, effort: Effort) -> Solution:
    """Least sum of additive costs (exact.py); the effort changes nothing."""
    choice, gap = solve_exact(evaluator.problem)
    best = evaluator([choice], "exact")[0]
    return Solution(best, gap, 0, {}, (best,))


def optuna(evaluator: Evaluator, effort: Effort) -> Solution:
    """The best of Optuna's trials and of exact, given and uniform plans."""
    stages = _Stages(evaluator, effort)
    stages.optuna()
    return stages.solution


def auto(evaluator: Evaluator, effort: Effort) -> Solution:
    """The best of exact, given, uniform plans and Optuna's, and of swaps from the exact and the best one."""
    stages = _Stages(evaluator, effort)
    stages.optuna()
    stages.swaps()
    return stages.solution


SOLVERS: dict[str, Solver] = {"exact": exact, "optuna": optuna, "auto": auto}


def check_solver(name: str) -> None:
    """Raise InputError unless SOLVERS has it."""
    if name not in SOLVERS:
        raise InputError(f"solver {name!r} is unknown; choose one of {', '.join(SOLVERS)}")


def solve(evaluator: Evaluator, *, solver: str = "auto", effort: Effort | None = None) -> Solution:
    """Run the solver called `solver`; starts above a budget are left out.

    Raises:
        InputError: unknown solver, or budgets that cannot be met together.
    """
    check_solver(solver)
    return SOLVERS[solver](evaluator, effort or Effort())
