"""Baselines: within the budgets, and each what its name says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sedaq.search import baselines, bench
from sedaq.search.baselines import BASELINES, HIGH_RATE, BaselineInputs, bit_price, greedy, knapsack, mean_contributions, random_choice
from sedaq.search.building import build_problem
from sedaq.search.exact import solve_exact
from sedaq.search.problem import Problem
from sedaq.search.uniform import uniform_choice

from .conftest import FakePredictor


@pytest.fixture
def problem(subject, menu, predictor: FakePredictor) -> Problem:
    return build_problem(subject, menu, predictor.additive_cost).bounded(bits=2.6, size_bytes=26_000)


@pytest.fixture
def inputs(predictor: FakePredictor) -> BaselineInputs:
    flat = FakePredictor({})
    return BaselineInputs(flat.additive_cost, predictor.additive_cost, predictor.additive_cost, predictor.additive_cost)


def test_all_are_within_the_budgets(problem: Problem, inputs: BaselineInputs) -> None:
    found = {name: method(problem, inputs) for name, method in BASELINES.items()}
    for choice in found.values():
        assert choice is not None and problem.fits(choice)
    assert len({tuple(choice) for choice in found.values()}) > 3
    assert BASELINES["one-at-a-time greedy"](problem, replace(inputs, alone=None)) is None


def test_knapsacks_minimise_their_own_error(problem: Problem, inputs: BaselineInputs, predictor: FakePredictor) -> None:
    np.testing.assert_array_equal(knapsack(problem, inputs.hessian_error), solve_exact(problem)[0])
    other = problem.priced(inputs.weight_error)
    choice = knapsack(problem, inputs.weight_error)
    for rival in (solve_exact(problem)[0], uniform_choice(problem)):
        assert other.cost(choice) <= other.cost(rival) + 1e-12


def test_greedy_and_prices_come_close_to_the_exact_solution_of_their_costs(problem: Problem, inputs: BaselineInputs) -> None:
    exact = problem.cost(solve_exact(problem)[0])
    assert inputs.alone is not None
    for choice in (greedy(problem, inputs.alone), bit_price(problem, inputs.learnt)):
        assert exact <= problem.cost(choice) + 1e-12 and problem.cost(choice) < problem.cost(uniform_choice(problem))


def test_the_ends_are_high_and_the_rest_uniform(subject, menu, predictor: FakePredictor, inputs: BaselineInputs) -> None:
    problem = build_problem(subject, menu, predictor.additive_cost).bounded(bits=4.5)
    rates = problem.rates[np.arange(len(problem.units)), BASELINES["first and last high"](problem, inputs)]
    assert rates[0] == rates[-1] == max(rate for rate in problem.rates[0] if rate <= HIGH_RATE)
    middle = np.unique(rates[1:-1])
    assert len(middle) <= 2 and middle.max() < rates[0]


def test_random_choices_fit_differ_and_repeat(problem: Problem) -> None:
    choices = [random_choice(problem, 0, index) for index in range(10)]
    assert all(problem.fits(choice) for choice in choices) and len({tuple(choice) for choice in choices}) > 5
    np.testing.assert_array_equal(choices[3], random_choice(problem, 0, 3))


def test_mean_contributions_are_means_by_rate() -> None:
    rates = np.array([[2.0, 3.0], [2.0, 4.0], [4.0, 4.0]])
    contributions = np.array([[1.0, 5.0], [3.0, 6.0], [-1.0, 8.0]])
    assert mean_contributions(rates, contributions) == [{2.0: 2.0, 4.0: -1.0}, {3.0: 5.0, 4.0: 7.0}]


def test_the_comparison_holds_methods_against_the_very_uniform_plan_that_gives_the_bytes(
    subject, menu, predictor: FakePredictor, inputs: BaselineInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With shared codebooks the uniform plan within the bytes of the uniform plan can be another; here it is made to be."""
    whole = build_problem(subject, menu, predictor.additive_cost)
    first, second = uniform_choice(whole.bounded(bits=2.6)), uniform_choice(whole.bounded(bits=2.2))
    given = iter([first, second, second])
    monkeypatch.setattr(bench, "uniform_choice", lambda *_, **__: next(given))
    monkeypatch.setattr(baselines, "uniform_choice", lambda *_, **__: next(given))
    found = SimpleNamespace(plan=SimpleNamespace(formats={"": None}), solver="exact")
    search = SimpleNamespace(problem=whole, n_trials=0, find=lambda *_, **__: (found, None))
    plans = bench.compare_methods(None, search, inputs, 2.6, ["uniform", "weight-error knapsack"], 0, None).plans  # type: ignore[arg-type]
    assert set(plans) == {"searched", "uniform", "weight-error knapsack"}
    assert plans["uniform"] == whole.formats(first) != whole.formats(second)
