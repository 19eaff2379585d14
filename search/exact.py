"""The exact solver: a multiple-choice knapsack on the additive part, as a mixed-integer program.

Sinha & Zoltners 1979: minimise Σ c[i,k] x[i,k] with Σ_k x[i,k] = 1 for every unit i, x binary, and Σ s[b,i,k] x[i,k] <= limit[b] for every
budget b. Codebooks that layers share add a binary each, not less than any x of an option that uses them, and their bytes to every budget.
HiGHS solves it through scipy.
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
    n, n_books = len(rows), len(problem.books)
    one_each = sparse.csr_array((np.ones(n), (rows, np.arange(n))), shape=(len(problem.units), n + n_books))
    book_sizes = np.array([size for _, size in problem.books], float).reshape(n_books, len(limits)).T
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(np.hstack([sizes, book_sizes]) / scale[:, None], -np.inf, room / scale),
    ]
    users = [(option, n + book) for book, (used, _) in enumerate(problem.books) for option in np.nonzero(used[rows, columns])[0]]
    if users:
        lines, pairs = np.arange(len(users)), np.array(users)
        values = np.concatenate([np.ones(len(users)), -np.ones(len(users))])
        uses = sparse.csr_array((values, (np.tile(lines, 2), pairs.T.reshape(-1))), shape=(len(users), n + n_books))
        constraints.append(LinearConstraint(uses, -np.inf, 0))
    with _silent_stdout():
        return milp(
            np.concatenate([costs / (costs.max() or 1.0), np.zeros(n_books)]),
            integrality=np.ones(n + n_books),
            bounds=Bounds(0, 1),
            constraints=constraints,
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
    taken[np.isfinite(problem.costs)] = x[: int(np.isfinite(problem.costs).sum())]
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
