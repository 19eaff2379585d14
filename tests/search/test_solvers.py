from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace

import numpy as np
import pytest

from sedaq.aq.plans.menu import Entry
from sedaq.aq.plans.plan import weight_bits
from sedaq.errors import InputError
from sedaq.search import swaps
from sedaq.search.budgets import Budgets
from sedaq.search.building import build_problem
from sedaq.search.constraints import Constraints, apply_constraints
from sedaq.search.evaluate import Evaluator
from sedaq.search.exact import solve_exact
from sedaq.search.problem import Problem
from sedaq.search.program import _silent_stdout
from sedaq.search.solvers import SOLVERS, Effort, solve
from sedaq.search.uniform import uniform_choices

from .conftest import FakePredictor, large_problem, random_problem


def brute_force(problem: Problem) -> float | None:
    """Least additive cost over all choices within the budgets."""
    choices = np.array(list(itertools.product(*(range(n) for n in problem.n_options))))
    rows = np.arange(len(problem.units))
    fits = np.ones(len(choices), bool)
    for sizes, limit in zip(problem.sizes, problem.limits, strict=True):
        fits &= sizes[rows, choices].sum(axis=1) <= limit
    return problem.costs[rows, choices].sum(axis=1)[fits].min() if fits.any() else None


@pytest.mark.parametrize("seed", range(120))
def test_exact_equals_brute_force(seed: int) -> None:
    """One, two or three budgets at once; units of one option stand for pins, of two layers for ties."""
    rng = np.random.default_rng(seed)
    free = random_problem(rng, int(rng.integers(2, 9)), 4, tied=seed % 2 == 0)
    limits = {}
    for name in ("weight_bytes", "file_bytes", "nanoseconds"):
        most = max(free.total(name, choice) for choice in (free.n_options - 1, free.amounts["weight_bytes"].argmin(axis=1)))
        limits[name] = int(free.minimum(name) + rng.random() * max(0, most - free.minimum(name)))
    given = rng.permutation(list(limits))[: rng.integers(1, 4)]
    problem = free.within(Budgets(**{name: limits[name] for name in given}))
    expected = brute_force(problem)
    if expected is None:
        with pytest.raises(InputError, match="cannot be met together"):
            solve_exact(problem)
        return
    choice, gap = solve_exact(problem)
    assert problem.fits(choice)
    assert problem.cost(choice) == pytest.approx(expected, abs=1e-6)
    assert gap is not None and gap <= 1e-6


@pytest.mark.parametrize("seed", range(80))
def test_exact_equals_brute_force_over_plans_that_keep_pins_and_ties(seed: int, subject, menu) -> None:
    """From constraints as users write them to a plan, against all assignments of formats, bits counted by Plan alone."""
    rng = np.random.default_rng(seed)
    names = list(menu)
    menus = {name: tuple(sorted(rng.choice(len(entries), 4, replace=False))) for name, entries in menu.items()}
    common = sorted(rng.choice(5, 4, replace=False)) if rng.random() < 0.7 else None  # else ties may have few rates in common
    menus = {name: tuple(menu[name][k] for k in common or kept) for name, kept in menus.items()}
    costs = {(name, e.format): float(rng.gamma(0.5)) for name in names for e in menus[name]}
    tied = [names[i] for i in rng.choice(6, 2, replace=False)]
    free = [name for name in names if name not in tied]
    pinned = {str(rng.choice(free)): menus[free[0]][0].format} if rng.random() < 0.5 else {}
    pinned = {name: menus[name][int(rng.integers(4))].format for name in pinned}
    asked = Constraints(pins=pinned, ties=[f"[{tied[0]}{tied[1]}]"])

    def cost(name: str, entry: Entry) -> float:
        return costs[name, entry.format]

    allowed = []
    for entries in itertools.product(*menus.values()):
        plan = dict(zip(names, entries, strict=True))
        if plan[tied[0]].rate == plan[tied[1]].rate and all(plan[name].format == format for name, format in pinned.items()):
            allowed.append(plan)
    try:
        restricted, groups, _ = apply_constraints(subject, menus, asked)
        problem = build_problem(subject, restricted, cost, ties=groups)
    except InputError as error:
        assert "no rate in common" in str(error) and not allowed
        return
    bits = float(rng.uniform(problem.min_bits, problem.max_bits))
    fitting = [plan for plan in allowed if weight_bits(subject, {name: e.format for name, e in plan.items()}) <= bits]
    expected = min(sum(cost(name, entry) for name, entry in plan.items()) for plan in fitting)
    choice, _ = solve_exact(problem.bounded(bits=bits))
    assert problem.cost(choice) == pytest.approx(expected, abs=1e-6)
    assert problem.formats(choice) in [{name: e.format for name, e in plan.items()} for plan in fitting]


@pytest.mark.parametrize("seed", range(10))
def test_exact_is_so_where_one_option_costs_millions_of_times_what_others_do(seed: int) -> None:
    """As an input layer at 1.5 bits does: solvers stop at gaps that are small beside the greatest cost."""
    rng = np.random.default_rng(seed)
    free = random_problem(rng, 7, 4)
    rows = list(free.units)
    for index, unit in enumerate(rows):
        rows[index] = replace(unit, costs=tuple(1e-6 * cost for cost in unit.costs))
    dear = next(index for index, unit in enumerate(rows) if len(unit.costs) > 1)
    rows[dear] = replace(rows[dear], costs=(600.0, *rows[dear].costs[1:]))
    free = replace(free, units=tuple(rows))
    cheapest = free.amounts["weight_bytes"].argmin(axis=1)
    cheapest[dear] = 1
    limit = (free.total("weight_bytes", cheapest) + free.total("weight_bytes", free.n_options - 1)) // 2
    problem = free.within(Budgets(weight_bytes=limit))
    choice, gap = solve_exact(problem)
    expected = brute_force(problem)
    assert expected is not None and problem.cost(choice) == pytest.approx(expected, rel=1e-5, abs=1e-10)
    assert gap is not None and gap <= 1e-5


def test_exact_without_a_budget_takes_the_least_costs() -> None:
    problem = random_problem(np.random.default_rng(0), 5, 4)
    choice, gap = solve_exact(problem)
    assert problem.cost(choice) == pytest.approx(brute_force(problem)) and gap == 0


@pytest.fixture(scope="module")
def large() -> Problem:
    return large_problem(70, 4)


@pytest.mark.slow
def test_exact_is_quick_at_803_layers(capsys: pytest.CaptureFixture[str]) -> None:
    free = large_problem()
    seconds = []
    for bits in (2.0, 3.0):
        problem = free.bounded(bits=bits, size_bytes=int(free.n_weights * bits / 8) + 803 * 250)
        started = time.perf_counter()
        choice, gap = solve_exact(problem)
        seconds.append(time.perf_counter() - started)
        assert problem.fits(choice) and gap is not None and gap <= 1e-3
    with capsys.disabled():
        print(f"\nexact, 803 layers x 8 formats, 2 budgets: {', '.join(f'{s:.2f} s' for s in seconds)}")
    assert max(seconds) < 20


def test_swaps_never_worsen_and_reach_a_local_optimum() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        free = random_problem(rng, 7, 4)
        low, high = free.minimum("weight_bytes"), free.total("weight_bytes", free.n_options - 1)
        problem = free.within(Budgets(weight_bytes=(low + high) // 2))
        names = [name for unit in problem.units for name in unit.names]
        predictor = FakePredictor({name: float(rng.gamma(0.5)) for name in names}, interaction=2.0)
        evaluator = Evaluator(problem, predictor)
        start = evaluator([uniform_choices(problem)[0]], "uniform")[0]
        best = swaps.improve(evaluator, start)
        assert best.mean <= start.mean and problem.fits(np.array(best.choice))
        assert all(problem.fits(np.array(choice)) for choice in evaluator.seen)
        singles = [np.array(best.choice) for unit in range(7) for _ in range(problem.n_options[unit])]
        for choice, (unit, option) in zip(singles, ((u, k) for u in range(7) for k in range(problem.n_options[u])), strict=True):
            choice[unit] = option
        assert all(c.mean >= best.mean for c in evaluator([c for c in singles if problem.fits(c)], "check"))


def test_optuna_is_repeatable_and_never_worse_than_what_was_enqueued(subject, menu, predictor) -> None:
    problem = build_problem(subject, menu, predictor.additive_cost).bounded(bits=2.3)
    first, second = (solve(Evaluator(problem, predictor), solver="optuna", effort=Effort(7, 40)) for _ in range(2))
    assert first == second
    exact = solve(Evaluator(problem, predictor), solver="exact")
    uniform = Evaluator(problem, predictor)(uniform_choices(problem, seed=7), "uniform")
    assert first.best.score <= min(exact.best.score, *(candidate.score for candidate in uniform))
    assert first.n_trials == 40 and first.gap is not None
    assert all(problem.fits(np.array(candidate.choice)) for candidate in first.candidates)


def test_auto_is_the_best_of_all_and_says_which(subject, menu) -> None:
    predictor = FakePredictor({layer.name: 1.0 + i for i, layer in enumerate(subject.layers)}, interaction=5.0)
    problem = build_problem(subject, menu, predictor.additive_cost).bounded(bits=2.3)
    found = {name: solve(Evaluator(problem, predictor), solver=name, effort=Effort(n_trials=40)) for name in SOLVERS}
    assert found["auto"].best.score <= min(solution.best.score for solution in found.values())
    assert found["auto"].solver in {"exact", "optuna", "uniform", "exact+swaps", "optuna+swaps", "uniform+swaps"}
    candidates = found["auto"].candidates
    assert len({candidate.choice for candidate in candidates}) == len(candidates) > 3
    assert candidates[0] == found["auto"].best


@pytest.mark.slow
def test_above_64_units_optuna_prices_groups_and_gains(large: Problem) -> None:
    predictor = FakePredictor({}, interaction=3.0)
    problem = large.bounded(bits=2.5)
    first, second = (solve(Evaluator(problem, predictor), solver="optuna", effort=Effort(3, 60)) for _ in range(2))
    assert first == second and first.n_trials == 60
    assert "optuna" in {candidate.found_by for candidate in first.candidates}
    exact = solve(Evaluator(problem, predictor), solver="exact")
    assert first.best.score <= exact.best.score
    whole = solve(Evaluator(problem, predictor), effort=Effort(3, 60))
    assert whole.best.score <= first.best.score and set(whole.gains) == {"optuna", "swaps"}
    assert min(whole.gains.values()) >= 0


def test_an_unknown_solver_is_named(subject, menu, predictor) -> None:
    with pytest.raises(InputError, match="solver 'greedy' is unknown; choose one of exact, optuna, auto"):
        solve(Evaluator(build_problem(subject, menu, predictor.additive_cost).bounded(bits=3), predictor), solver="greedy")


def test_nothing_is_printed_by_the_solver(capfd: pytest.CaptureFixture[str]) -> None:
    with _silent_stdout():
        os.write(1, b"as HiGHS prints")
    os.write(1, b"seen")
    assert capfd.readouterr().out == "seen"
