"""Close calls: what the deviation of an ensemble leaves open."""

from __future__ import annotations

import numpy as np

from sedaq.search.budgets import Budgets
from sedaq.search.exact import solve_exact
from sedaq.search.margins import optima, undecided
from sedaq.search.problem import Problem

from .conftest import random_problem


def solved(seed: int) -> tuple[Problem, np.ndarray]:
    free = random_problem(np.random.default_rng(seed), 8, 4)
    problem = free.within(Budgets(weight_bytes=(free.minimum("weight_bytes") + free.total("weight_bytes", free.n_options - 1)) // 2))
    return problem, solve_exact(problem)[0]


def table(problem: Problem, spread: float):
    """Costs of three members about the problem's own; the middle one is these."""
    known = {
        (unit.names[0], str(option[0].format)): cost
        for unit in problem.units
        for option, cost in zip(unit.options, unit.costs, strict=True)
    }
    rng = np.random.default_rng(0)
    shifts = {key: rng.normal() for key in known}

    def costs_of(name, entry) -> np.ndarray:
        key = (name, str(entry.format))
        return known[key] + spread * shifts[key] * np.array([-1.0, 0.0, 1.0])

    return costs_of


def test_certain_costs_leave_nothing_open_and_wild_ones_nearly_all() -> None:
    for seed in range(5):
        problem, choice = solved(seed)
        assert undecided(problem, choice, table(problem, 0.0)) == []
        open_ones = undecided(problem, choice, table(problem, 100.0))
        assert len(open_ones) == sum(len(unit.options) > 1 for unit in problem.units)
        assert [row["margin"] for row in open_ones] == sorted(row["margin"] for row in open_ones)
        assert all(row["takes"] != row["or"] and row["margin"] <= 1 for row in open_ones)


def test_a_layer_is_open_only_where_members_disagree() -> None:
    problem, choice = solved(3)
    unit = next(row for row, unit in enumerate(problem.units) if len(unit.options) > 1)
    sure, wild = table(problem, 0.0), table(problem, 100.0)
    name = problem.units[unit].names[0]
    found = undecided(problem, choice, lambda layer, entry: (wild if layer == name else sure)(layer, entry))
    assert [row["layers"] for row in found] == [[name]]
    assert found[0]["takes"] == str(problem.units[unit].options[choice[unit]][0].format)


def test_optima_are_each_members_own_best_and_distinct() -> None:
    for seed in range(5):
        problem, choice = solved(seed)
        certain = optima(problem, table(problem, 0.0))
        assert len(certain) == 1 and (certain[0] == choice).all()
        costs_of = table(problem, 0.5)
        found = optima(problem, costs_of)
        assert 1 <= len(found) <= 3 and all(problem.fits(one) for one in found)
        for member in range(3):
            priced = problem.priced(lambda name, entry, of=costs_of, member=member: float(of(name, entry)[member]))
            assert min(priced.cost(one) for one in found) <= priced.cost(choice) + 1e-9
            assert priced.cost(solve_exact(priced)[0]) in [priced.cost(one) for one in found]
