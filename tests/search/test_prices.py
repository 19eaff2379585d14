"""Prices of groups: the Lagrangian solution, groups, and what raises or lowers them."""

from __future__ import annotations

import numpy as np
import pytest

from sedaq.search.budgets import Budgets
from sedaq.search.exact import solve_exact
from sedaq.search.prices import MAX_GROUPS, STEPS, Prices, groups_of

from .conftest import large_problem, random_problem

EVEN = STEPS // 2


@pytest.mark.parametrize("seed", range(10))
def test_even_prices_are_the_lagrangian_solution(seed: int) -> None:
    """No choice of as many bytes or fewer costs less than a Lagrangian solution does (Everett 1963)."""
    free = random_problem(np.random.default_rng(seed), 6, 4)
    prices = Prices(free, np.zeros(6, np.int64))
    low, high = prices.log_prices
    for log_price in np.linspace(low, high, 12):
        choice = prices.at([EVEN], log_price)
        best, _ = solve_exact(free.within(Budgets(weight_bytes=free.total("weight_bytes", choice))))
        assert free.cost(choice) == pytest.approx(free.cost(best))
    ends = [free.total("weight_bytes", prices.at([EVEN], end)) for end in (low, high)]
    assert ends[1] == free.minimum("weight_bytes") and ends[0] > ends[1]


def test_a_dearer_group_gets_fewer_bytes_and_the_budget_holds() -> None:
    problem = large_problem(40, 6).bounded(bits=3)
    groups = np.arange(40) % 2
    prices, fallback = Prices(problem, groups), solve_exact(problem)[0]
    sizes = []
    for values in ([EVEN, EVEN], [EVEN + 4, EVEN], [STEPS, 0]):
        choice = prices.within(values, fallback)
        assert problem.fits(choice)
        sizes.append(problem.amounts["weight_bytes"][np.arange(40), choice][groups == 0].sum())
    assert sizes[0] > sizes[1] > sizes[2]


def test_even_prices_are_close_to_the_exact_solution() -> None:
    problem = large_problem(200, 8).bounded(bits=2.5)
    exact, _ = solve_exact(problem)
    choice = Prices(problem, np.zeros(200, np.int64)).within([EVEN], exact)
    assert problem.cost(exact) <= problem.cost(choice) <= 1.01 * problem.cost(exact)


def test_groups_are_roles_in_bands_of_depth_and_few() -> None:
    def unit(name: str):
        return type("U", (), {"names": (name,)})()

    kinds = ("attn1.to_q", "attn1.to_k", "ff.net.2")
    units = [unit(f"transformer_blocks.{block}.{kind}") for block in range(100) for kind in kinds]
    groups = groups_of(units)
    assert 3 * 18 < groups.max() + 1 <= MAX_GROUPS
    for kind in range(3):
        of_kind = groups[kind::3]
        assert len(np.unique(of_kind)) > 15 and (np.diff(np.unique(of_kind, return_index=True)[1]) > 0).all()
        assert not set(of_kind) & set(groups[(kind + 1) % 3 :: 3]), "roles are never mixed"
    many = [unit(f"{'abcdefghij'[i // 10]}{'klmnopqrst'[i % 10]}") for i in range(100)]
    assert groups_of(many).max() + 1 <= MAX_GROUPS
