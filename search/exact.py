"""The exact solver: a multiple-choice knapsack on the additive part, as a mixed-integer program.

Sinha & Zoltners 1979: minimise Σ c[i,k] x[i,k] with Σ_k x[i,k] = 1 for every unit i, x binary, and Σ s[b,i,k] x[i,k] <= limit[b] for every
budget b. HiGHS solves it through scipy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from ..errors import InputError, SedaqError
from .problem import Choice, Problem
from .repair import repair

SECONDS = 30.0  # a limit against hard cases, far above what 803 units take
_REL_GAP = 1e-7


def solve_exact(problem: Problem, *, seconds: float = SECONDS) -> tuple[Choice, float | None]:
    """The choice of least additive cost, and its optimality gap.

    Costs enter as the excess over each unit's cheapest and sizes as the excess over each unit's least, both divided by the largest, so
    that HiGHS' absolute tolerances mean the same whatever the model's size.
    Rounding to whole options may exceed a limit by a tolerance; then it is solved again with the limit lowered by that much.

    Returns:
        choice, within every budget; gap = (cost − bound) / cost, both counted above the sum of the units' least costs, None where the time
        limit came before a bound.
    """
    if not len(problem.limits):
        return problem.costs.argmin(axis=1), 0.0
    limits = problem.limits
    for _ in range(5):
        result = _milp(problem, limits, seconds)
        if result.x is None:
            return _without_solution(problem, result)
        choice = _rounded(problem, result.x)
        if problem.fits(choice):
            return choice, None if result.mip_gap is None else max(0.0, float(result.mip_gap))
        limits = limits - (problem.used(choice) - problem.limits).clip(min=0)
    return _without_solution(problem, result)


def _milp(problem: Problem, limits: np.ndarray, seconds: float) -> OptimizeResult:
    rows, columns = np.nonzero(np.isfinite(problem.costs))
    least_cost, least = problem.costs.min(axis=1), problem.sizes.min(axis=2)
    costs = (problem.costs - least_cost[:, None])[rows, columns]
    sizes = (problem.sizes - least[:, :, None])[:, rows, columns].astype(float)
    room = (limits - least.sum(axis=1)).astype(float)
    scale = np.maximum(sizes.max(axis=1), 1.0)
    one_each = sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(problem.units), len(rows)))
    with _silent_stdout():
        return milp(
            costs / (costs.max() or 1.0),
            integrality=np.ones(len(rows)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes / scale[:, None], -np.inf, room / scale)],
            options={"mip_rel_gap": _REL_GAP, "time_limit": seconds},
        )


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS now and then prints a debug line of its own to the process' stdout, which would spoil --json."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def _rounded(problem: Problem, x: np.ndarray) -> Choice:
    taken = np.full(problem.costs.shape, -1.0)
    taken[np.isfinite(problem.costs)] = x
    return taken.argmax(axis=1)


def _without_solution(problem: Problem, result: OptimizeResult) -> tuple[Choice, float | None]:
    if result.status == 2:
        raise InputError(
            f"the budgets of {8 * (problem.max_weight_bytes or 0) / problem.n_weights:.6g} bits and {problem.max_file_bytes} bytes "
            "cannot be met together; raise one"
        )
    choice = problem.sizes[0].argmin(axis=1)
    repaired = repair(problem, choice, fallback=choice)
    if not problem.fits(repaired):
        raise SedaqError(f"the exact solver found no plan in time ({result.message}); raise the budget, or give only one")
    return repaired, None
