"""Multiple-choice programs: one option a unit, codebooks that options need, budgets on both. HiGHS solves them through scipy.

Sinha & Zoltners 1979: minimise Σ c[i,k] x[i,k] with Σ_k x[i,k] = 1 for every unit i, x binary, and Σ s[b,i,k] x[i,k] <= room[b] for every
budget b. A book is one more binary, not less than any x of an option that needs it, with a cost and sizes of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

MAX_NODES = 20_000  # a limit against hard cases, far above what 803 units take; not of time, by which results would differ between machines
_REL_GAP, _REL_GAP_OF_MANY = 1e-7, 1e-4
MANY = 200  # units; above, the last ten-thousandth can take more seconds than all before
Reals = NDArray[np.float64]


def choose(
    costs: Reals,
    needs: NDArray[np.bool_],
    book_costs: Reals,
    sizes: Reals,
    book_sizes: Reals,
    room: Reals,
    *,
    max_nodes: int = MAX_NODES,
) -> OptimizeResult:
    """The options of least cost; `taken` reads them off the result.

    Costs and sizes are divided by the largest, so that HiGHS' absolute tolerances mean the same whatever the model's size; give them as
    excess over each unit's least.

    Args:
        costs: (n_units, K), infinite where a unit has fewer options. book_costs: (n_books,)
        needs: (n_books, n_units, K), which options need which book.
        sizes: (n_budgets, n_units, K). book_sizes: (n_budgets, n_books). room: (n_budgets,)
    """
    rows, columns = np.nonzero(np.isfinite(costs))
    n, n_books = len(rows), len(needs)
    one_each = sparse.csr_array((np.ones(n), (rows, np.arange(n))), shape=(len(costs), n + n_books))
    constraints = [LinearConstraint(one_each, 1, 1)]
    if len(room):
        all_sizes = np.hstack([sizes[:, rows, columns], book_sizes])
        scale = np.maximum(all_sizes.max(axis=1), 1.0)
        constraints.append(LinearConstraint(all_sizes / scale[:, None], -np.inf, room / scale))
    books, options = np.nonzero(needs[:, rows, columns])
    if len(books):
        lines, ones = np.arange(len(books)), np.ones(len(books))
        entries = (np.concatenate([ones, -ones]), (np.tile(lines, 2), np.concatenate([options, n + books])))
        constraints.append(LinearConstraint(sparse.csr_array(entries, shape=(len(books), n + n_books)), -np.inf, 0))
    all_costs = np.concatenate([costs[rows, columns], book_costs])
    with _silent_stdout():
        return milp(
            all_costs / (all_costs.max() or 1.0),
            integrality=np.ones(n + n_books),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": _REL_GAP if len(costs) <= MANY else _REL_GAP_OF_MANY, "node_limit": max_nodes},
        )


def taken(costs: Reals, x: Reals) -> NDArray[np.int64]:
    """(n_units,), the option that each unit takes in the solution x."""
    table = np.full(costs.shape, -1.0)
    table[np.isfinite(costs)] = x[: int(np.isfinite(costs).sum())]
    return table.argmax(axis=1)


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS now and then prints a debug line of its own to the process' stdout, which would spoil JSON there."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)
