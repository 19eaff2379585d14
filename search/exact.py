"""The exact solver: the additive part as a multiple-choice program (program.py)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import OptimizeResult

from ..errors import InputError, SedaqError
from .prices import STEPS, Prices
from .problem import Choice, Problem
from .program import MAX_NODES, choose, taken
from .repair import repair


def solve_exact(problem: Problem, *, max_nodes: int = MAX_NODES) -> tuple[Choice, float | None]:
    """The choice of least additive cost, and its optimality gap.

    Rounding to whole options may exceed a limit by a tolerance; then it is solved again with the limit lowered by that much.

    Returns:
        choice, within every budget; gap = (cost − bound) / cost, both counted above the sum of the units' least costs, None where the
        limit of nodes came before a bound.
    """
    if not len(problem.limits):
        return problem.costs.argmin(axis=1), 0.0
    # HiGHS stops at an absolute gap of 10⁻⁶ of the greatest cost, so that costs of plans must not be small beside it: an option that alone
    # costs more than a whole plan does is in no better one.
    excess = problem.costs - problem.costs.min(axis=1, keepdims=True)
    bounded = np.where(excess <= _reach(problem, excess), excess, np.inf)
    limits = problem.limits
    for _ in range(5):
        result = _milp(problem, bounded, limits, max_nodes)
        if result.x is None:
            return _without_solution(problem, result)
        choice = taken(bounded, result.x)
        if problem.fits(choice):
            return choice, None if result.mip_gap is None else max(0.0, float(result.mip_gap))
        limits, bounded = limits - (problem.used(choice) - problem.limits).clip(min=0), excess
    return _without_solution(problem, result)


def _reach(problem: Problem, excess: np.ndarray) -> float:
    """What the Lagrangian solution, brought within the budgets, costs above the units' least; infinite where no price leads to one."""
    prices = Prices(problem, np.zeros(len(problem.units), np.int64))
    choice = prices.at([STEPS // 2], prices.price_within([STEPS // 2]))
    if not problem.fits(choice):
        return np.inf
    found = excess[np.arange(len(excess)), repair(problem, choice, fallback=choice)].sum()
    return float(found * (1 + 1e-9))


def _milp(problem: Problem, excess: np.ndarray, limits: np.ndarray, max_nodes: int) -> OptimizeResult:
    minima = problem.sizes.min(axis=2)
    return choose(
        excess,
        problem.needs,
        np.zeros(len(problem.needs)),
        (problem.sizes - minima[:, :, None]).astype(float),
        problem.book_sizes.astype(float),
        (limits - minima.sum(axis=1)).astype(float),
        max_nodes=max_nodes,
    )


def _without_solution(problem: Problem, result: OptimizeResult) -> tuple[Choice, float | None]:
    if result.status == 2:
        raise InputError(
            f"the budgets of {' and '.join(problem.text(*budget) for budget in problem.budgets.given.items())} cannot be met together; "
            "raise one, or loosen pins and rates"
        )
    choice = problem.sizes[0].argmin(axis=1)
    repaired = repair(problem, choice, fallback=choice)
    if not problem.fits(repaired):
        raise SedaqError(f"the exact solver found no plan within its limit of nodes ({result.message}); raise the budget, or give only one")
    return repaired, None
