from __future__ import annotations

import itertools
import os
import time

import numpy as np
import pytest

from sedaq.errors import InputError
from sedaq.search import swaps
from sedaq.search.evaluate import Evaluator
from sedaq.search.exact import solve_exact
from sedaq.search.problem import Problem, build_problem
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
    rng = np.random.default_rng(seed)
    free = random_problem(rng, int(rng.integers(2, 8)), 4, tied=seed % 2 == 0)
    low, high = free.least_weight_bytes, free.total_weight_bytes(free.n_options - 1)
    low_file, high_file = free.least_file_bytes, free.total_file_bytes(free.n_options - 1)
    weight = int(low + rng.random() * (high - low)) if seed % 3 != 1 else None
    size = int(low_file + rng.random() * max(0, high_file - low_file)) if seed % 3 != 0 else None
    problem = free.within(max_weight_bytes=weight, max_file_bytes=size)
    expected = brute_force(problem)
    if expected is None:
        with pytest.raises(InputError, match="cannot be met together"):
            solve_exact(problem)
        return
    choice, gap = solve_exact(problem)
    assert problem.fits(choice)
    assert problem.cost(choice) == pytest.approx(expected, abs=1e-6)
    assert gap is not None and gap <= 1e-6


def test_exact_without_a_budget_takes_the_least_costs() -> None:
    problem = random_problem(np.random.default_rng(0), 5, 4)
    choice, gap = solve_exact(problem)
    assert problem.cost(choice) == pytest.approx(brute_force(problem)) and gap == 0


@pytest.fixture(scope="module")
def large() -> Problem:
    return large_problem(70, 4)


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
        low, high = free.least_weight_bytes, free.total_weight_bytes(free.n_options - 1)
        problem = free.within(max_weight_bytes=(low + high) // 2)
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
    problem = build_problem(subject, menu, predictor.additive_cost, bits=2.3)
    first, second = (solve(Evaluator(problem, predictor), solver="optuna", effort=Effort(7, 40)) for _ in range(2))
    assert first == second
    exact = solve(Evaluator(problem, predictor), solver="exact")
    uniform = Evaluator(problem, predictor)(uniform_choices(problem, seed=7), "uniform")
    assert first.best.score <= min(exact.best.score, *(candidate.score for candidate in uniform))
    assert first.n_trials == 40 and first.gap is not None
    assert all(problem.fits(np.array(candidate.choice)) for candidate in first.candidates)


def test_auto_is_the_best_of_all_and_says_which(subject, menu) -> None:
    predictor = FakePredictor({layer.name: 1.0 + i for i, layer in enumerate(subject.layers)}, interaction=5.0)
    problem = build_problem(subject, menu, predictor.additive_cost, bits=2.3)
    found = {name: solve(Evaluator(problem, predictor), solver=name, effort=Effort(n_trials=40)) for name in SOLVERS}
    assert found["auto"].best.score <= min(solution.best.score for solution in found.values())
    assert found["auto"].solver in {"exact", "optuna", "uniform", "exact+swaps", "optuna+swaps", "uniform+swaps"}
    candidates = found["auto"].candidates
    assert len({candidate.choice for candidate in candidates}) == len(candidates) > 3
    assert candidates[0] == found["auto"].best


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
        solve(Evaluator(build_problem(subject, menu, predictor.additive_cost, bits=3), predictor), solver="greedy")


def test_nothing_is_printed_by_the_solver(capfd: pytest.CaptureFixture[str]) -> None:
    with _silent_stdout():
        os.write(1, b"as HiGHS prints")
    os.write(1, b"seen")
    assert capfd.readouterr().out == "seen"
