"""Codebooks that layers share weigh once, whoever uses them: in sums, in limits and in every solver."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import Entry
from sedaq.errors import InputError
from sedaq.search import swaps
from sedaq.search.budgets import Budgets
from sedaq.search.evaluate import Evaluator
from sedaq.search.exact import solve_exact
from sedaq.search.problem import Choice, Problem, Unit
from sedaq.search.repair import repair
from sedaq.search.solvers import SOLVERS, Effort, solve
from sedaq.search.uniform import at_rate, uniform_choices

from .conftest import FORMATS, FakePredictor

BUDGETS = ("bits", "file", "both")
BOOKS = (0, 30, 150, 600)  # bytes of codebooks: free, cheap, about what one layer saves by sharing, and dearer than all


def problem_with_books(rng: np.random.Generator, n_units: int, book_bytes: int, *, n_roles: int = 2) -> Problem:
    """Every option has an own format or, as often, the codebooks of its role and place, which save it some bytes and cost as much to share."""
    book_of = {
        (role, k): (Format.parse(f"1x{k + 3}g4@r{role}"), book_bytes + int(rng.integers(0, 20)))
        for role, k in itertools.product(range(n_roles), range(3))
    }
    units = []
    for unit in range(n_units):
        names = tuple(f"l{unit}.{i}" for i in range(2 if unit % 3 == 0 else 1))  # every third is a tie
        n_options = int(rng.integers(1, 4))
        shared = rng.random(n_options) < 0.5
        columns = []
        for i, _ in enumerate(names):
            sizes = np.sort(rng.choice(np.arange(100, 400), n_options, replace=False))
            entries = []
            for k, size in enumerate(sizes):
                extra = int(rng.integers(0, 60))
                if shared[k]:
                    format, book = book_of[(unit + i * (unit % 2)) % n_roles, k]
                    entries.append(Entry(float(k + 1), format, int(size) - 90, int(size) - 90 + extra, book, book + 70))
                else:
                    entries.append(Entry(float(k + 1), FORMATS[k], int(size), int(size) + extra))
            columns.append(entries)
        costs = np.sort(rng.gamma(0.5, 1.0, n_options))[::-1] + rng.normal(0, 0.05, n_options)
        options = sorted(zip(zip(*columns, strict=True), costs, strict=True), key=lambda pair: sum(e.size_bytes for e in pair[0]))
        units.append(Unit(names, tuple(row for row, _ in options), tuple(float(cost) for _, cost in options)))
    return Problem(tuple(units), n_weights=n_units * 400, fixed_file_bytes=100)


def all_choices(problem: Problem) -> list[Choice]:
    return [np.array(choice) for choice in itertools.product(*(range(n) for n in problem.n_options))]


def bytes_of(problem: Problem, choice: Choice) -> tuple[int, int]:
    """Weight and file bytes by the definition: entries one by one, each set of codebooks when it is met the first time."""
    weight, file, met = 0, problem.fixed_file_bytes, set()
    for unit, k in zip(problem.units, choice, strict=True):
        for entry in unit.options[k]:
            weight, file = weight + entry.size_bytes, file + entry.file_bytes
            if entry.format.book and str(entry.format) not in met:
                met.add(str(entry.format))
                weight, file = weight + entry.book_bytes, file + entry.book_file_bytes
    return weight, file


def bounded(rng: np.random.Generator, free: Problem, budgets: str) -> tuple[Problem, Choice]:
    """Limits that a random choice, which is returned, just meets or somewhat more."""
    anchor = rng.integers(0, free.n_options)
    weight, file = bytes_of(free, anchor)
    slack = int(rng.integers(0, 120)) * int(rng.integers(0, 2))
    limits = {
        "weight_bytes": None if budgets == "file" else weight + slack,
        "file_bytes": None if budgets == "bits" else file + slack,
    }
    return free.within(Budgets(**limits)), anchor


def cases() -> Iterator[tuple[int, int, str]]:
    return ((seed, BOOKS[seed % len(BOOKS)], budgets) for seed, budgets in itertools.product(range(12), BUDGETS))


@pytest.mark.parametrize("book_bytes", BOOKS)
def test_what_is_used_counts_a_book_once(book_bytes: int) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        problem, _ = bounded(rng, problem_with_books(rng, 5, book_bytes), "both")
        for choice in all_choices(problem)[::7]:
            weight, file = bytes_of(problem, choice)
            assert (problem.total("weight_bytes", choice), problem.total("file_bytes", choice)) == (weight, file)
            assert problem.used(choice).tolist() == [weight, file - problem.fixed_file_bytes]
            assert problem.fits(choice) == (weight <= problem.budgets.weight_bytes and file <= problem.budgets.file_bytes)


@pytest.mark.parametrize("budgets", BUDGETS)
def test_used_and_steps_have_a_row_for_each_budget(budgets: str) -> None:
    rng = np.random.default_rng(0)
    problem, choice = bounded(rng, problem_with_books(rng, 6, 150), budgets)
    n_budgets = 2 if budgets == "both" else 1
    assert problem.used(choice).shape == problem.limits.shape == (n_budgets,)
    assert problem.steps(choice).shape == (n_budgets, *problem.costs.shape)
    assert problem.needs.any() and problem.book_sizes.shape == (n_budgets, len(problem.needs))


def test_steps_bound_the_change_of_every_move_and_are_exact_where_no_book_falls_away() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        problem, choice = bounded(rng, problem_with_books(rng, 6, 150), "both")
        steps, now = problem.steps(choice), problem.used(choice)
        books = {entry.book for entry in problem.entries(choice).values()}
        for unit, k in [(unit, k) for unit, n in enumerate(problem.n_options) for k in range(n)]:
            moved = choice.copy()
            moved[unit] = k
            change = problem.used(moved) - now
            assert (steps[:, unit, k] >= change).all()
            if books <= {entry.book for entry in problem.entries(moved).values()}:
                assert (steps[:, unit, k] == change).all()


def test_steps_of_two_moves_bound_their_sum() -> None:
    """What swaps rely on: moves of two units to one new book count it twice at worst."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        problem, choice = bounded(rng, problem_with_books(rng, 4, 150), "both")
        steps, now, rows = problem.steps(choice), problem.used(choice), np.arange(4)
        for moved in all_choices(problem):
            if (moved != choice).sum() <= 2:
                assert (problem.used(moved) <= now + steps[:, rows, moved].sum(axis=1)).all()


@pytest.mark.parametrize("seed", range(40))
def test_the_least_size_is_the_least_of_all_choices_and_can_be_asked_for(seed: int) -> None:
    problem = problem_with_books(np.random.default_rng(seed), 5, BOOKS[seed % len(BOOKS)], n_roles=1 + seed % 3)
    weights, files = zip(*(bytes_of(problem, choice) for choice in all_choices(problem)), strict=True)
    assert (problem.minimum("weight_bytes"), problem.minimum("file_bytes")) == (min(weights), min(files))
    for name, least in (("weight_bytes", min(weights)), ("file_bytes", min(files))):
        choice, _ = solve_exact(problem.within(Budgets(**{name: least})))
        assert bytes_of(problem, choice)[name == "file_bytes"] == least
        with pytest.raises(InputError, match="cannot be met; the least reachable is"):
            problem.within(Budgets(**{name: least - 1}))


@pytest.mark.parametrize(("seed", "book_bytes", "budgets"), cases())
def test_exact_equals_brute_force(seed: int, book_bytes: int, budgets: str) -> None:
    rng = np.random.default_rng(seed)
    problem, _ = bounded(rng, problem_with_books(rng, int(rng.integers(2, 8)), book_bytes), budgets)
    costs = [
        problem.cost(choice)
        for choice, (weight, file) in ((choice, bytes_of(problem, choice)) for choice in all_choices(problem))
        if weight <= (problem.budgets.weight_bytes or weight) and file <= (problem.budgets.file_bytes or file)
    ]
    choice, gap = solve_exact(problem)
    assert problem.fits(choice) and gap is not None and gap <= 1e-6
    assert problem.cost(choice) == pytest.approx(min(costs), abs=1e-6)


@pytest.mark.parametrize(("book_bytes", "n_sharing"), [(150, 4), (359, 4), (361, 0), (600, 0)])
def test_a_book_is_taken_when_it_pays_for_all(book_bytes: int, n_sharing: int) -> None:
    """Four layers save 90 bytes each: where bytes are scarce, a book of less than 360 bytes is worth it."""
    shared, own = Entry(2.0, Format.parse("1x4g4@r"), 110, 110, book_bytes, book_bytes), Entry(2.0, Format.parse("1x4g4"), 200, 200)
    free = Problem(tuple(Unit((f"l{i}",), ((shared,), (own,)), (1.0, 1.0)) for i in range(4)), 1600, 0)
    assert free.minimum("weight_bytes") == min(800, 440 + book_bytes)
    choice, _ = solve_exact(free.within(Budgets(weight_bytes=free.minimum("weight_bytes"))))
    assert (choice == 0).sum() == n_sharing


def test_uniform_goes_by_rates_where_the_bytes_of_a_layer_do_not() -> None:
    """Without its book an entry of a higher rate may be the smaller one."""
    shared, own = Entry(2.0, Format.parse("1x6g4@r"), 80, 80, 60, 60), Entry(1.5, Format.parse("1x4g4"), 100, 100)
    units = tuple(Unit((f"l{i}",), ((shared,), (own,), (Entry(8.0, Format.parse("int8"), 600, 600),)), (1.0, 2.0, 0.0)) for i in range(5))
    problem = Problem(units, 2500, 0)
    assert [at_rate(problem, rate).tolist() for rate in (1.0, 1.5, 2.0, 8.0, 16.0)] == [[0] * 5, [1] * 5, [0] * 5, [2] * 5, [2] * 5]
    assert all((choice == 0).all() for choice in uniform_choices(problem.within(Budgets(weight_bytes=500))))


@pytest.mark.parametrize(("seed", "book_bytes", "budgets"), cases())
def test_repair_and_uniform_keep_the_limits(seed: int, book_bytes: int, budgets: str) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(5):
        problem, anchor = bounded(rng, problem_with_books(rng, 7, book_bytes), budgets)
        for start in rng.integers(0, problem.n_options, (10, 7)):
            repaired = repair(problem, start, fallback=anchor)
            assert problem.fits(repaired)
            if problem.fits(start):
                assert problem.cost(repaired) <= problem.cost(start) + 1e-12
        assert all(problem.fits(choice) for choice in uniform_choices(problem))


@pytest.mark.parametrize(("seed", "book_bytes", "budgets"), cases())
def test_swaps_and_solvers_keep_the_limits(seed: int, book_bytes: int, budgets: str) -> None:
    rng = np.random.default_rng(seed)
    problem, anchor = bounded(rng, problem_with_books(rng, 7, book_bytes), budgets)
    predictor = FakePredictor({name: float(rng.gamma(0.5)) for unit in problem.units for name in unit.names}, interaction=2.0)
    evaluator = Evaluator(problem, predictor)
    start = evaluator([anchor], "anchor")[0]
    assert swaps.improve(evaluator, start).mean <= start.mean
    assert all(problem.fits(np.array(choice)) for choice in evaluator.seen)
    for solver in SOLVERS:
        solution = solve(Evaluator(problem, predictor), solver=solver, effort=Effort(n_trials=8))
        assert all(problem.fits(np.array(candidate.choice)) for candidate in solution.candidates)
