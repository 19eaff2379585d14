from __future__ import annotations

import math

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sedaq.aq.formats import Format
from sedaq.aq.plans.plan import SAFETENSORS_METADATA, tensor_specs
from sedaq.errors import InputError
from sedaq.search.budgets import Budgets, parse_size
from sedaq.search.building import build_problem
from sedaq.search.repair import repair
from sedaq.search.uniform import at_rate, uniform_choice, uniform_choices

from .conftest import random_problem


@pytest.mark.parametrize(
    ("text", "size"),
    [("700kB", 700_000), ("2MB", 2_000_000), ("2MiB", 2 << 20), ("1500000", 1_500_000), (" 1.5 GB ", 1_500_000_000), (".5KiB", 512)],
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "2XB", "0", "0.1", "1e6", "nan", "1 2MB", "9" * 400, "9" * 5000, "٣MB", "9e9GB", "9" * 20 + "GB"]
)
def test_other_text_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)


def test_bound_on_file_bytes_holds_on_disk_and_is_close(subject, menu, predictor) -> None:
    problem = build_problem(subject, menu, predictor.additive_cost)
    rng = np.random.default_rng(0)
    for choice in [*rng.integers(0, problem.n_options, (20, len(problem.units))), problem.n_options - 1, 0 * problem.n_options]:
        specs = tensor_specs(subject, problem.formats(choice))
        tensors = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in specs.items()}
        data = safetensors.torch.save(tensors, SAFETENSORS_METADATA)
        assert len(data) <= problem.total("file_bytes", choice) <= len(data) + 200


def test_formats_name_their_choice(subject, menu, predictor) -> None:
    problem = build_problem(subject, menu, predictor.additive_cost, ties=[("1", "5")])
    for choice in np.random.default_rng(0).integers(0, problem.n_options, (20, len(problem.units))):
        assert (problem.choice_of(problem.formats(choice)) == choice).all()


def test_impossible_budgets_name_the_least_size_and_that_size_is_possible(subject, menu, predictor) -> None:
    problem = build_problem(subject, menu, predictor.additive_cost)
    with pytest.raises(InputError, match=rf"1 bits per weight cannot be met; the least reachable is {problem.min_bits_text} bits"):
        problem.bounded(bits=1.0)
    problem.bounded(bits=float(problem.min_bits_text))
    with pytest.raises(InputError, match=rf"1000 bytes cannot be met; the least reachable is {problem.minimum('file_bytes')} bytes"):
        problem.bounded(size_bytes=1000)
    problem.bounded(size_bytes=problem.minimum("file_bytes"))
    for bits in (math.nan, 0.0, -1.0, math.inf):
        with pytest.raises(InputError, match="is no budget"):
            problem.bounded(bits=bits)


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1), budgets=st.sampled_from(["bits", "file", "both"]))
def test_repair_never_exceeds_a_budget_and_gains_where_it_can(seed: int, share: float, budgets: str) -> None:
    rng = np.random.default_rng(seed)
    free = random_problem(rng, 6, 5, tied=True)
    anchor = rng.integers(0, free.n_options)  # a choice that fits, so that both budgets can be met together
    top = free.n_options - 1
    weight = free.total("weight_bytes", anchor) + int(share * max(0, free.total("weight_bytes", top) - free.total("weight_bytes", anchor)))
    size = free.total("file_bytes", anchor) + int(share * max(0, free.total("file_bytes", top) - free.total("file_bytes", anchor)))
    problem = free.within(Budgets(weight_bytes=None if budgets == "file" else weight, file_bytes=None if budgets == "bits" else size))
    start = rng.integers(0, free.n_options)
    repaired = repair(problem, start, fallback=anchor)
    assert problem.fits(repaired)
    assert (repaired < problem.n_options).all() and (repaired >= 0).all()
    if problem.fits(start):
        assert problem.cost(repaired) <= problem.cost(start) + 1e-12


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), first=st.floats(0, 1), second=st.floats(0, 1))
def test_uniform_is_within_the_budget_and_grows_with_it(seed: int, first: float, second: float) -> None:
    free = random_problem(np.random.default_rng(seed), 8, 5)
    low, high = free.minimum("weight_bytes"), free.total("weight_bytes", free.n_options - 1)
    used = []
    for share in sorted((first, second)):
        problem = free.within(Budgets(weight_bytes=int(low + share * (high - low))))
        choices = uniform_choices(problem, seed=3)
        assert all(problem.fits(choice) for choice in choices)
        used.append([problem.total("weight_bytes", choice) for choice in choices])
    assert all(a <= b for a, b in zip(*used, strict=True))


def test_uniform_mixes_two_neighbouring_rates_and_orders_differ(subject, menu, predictor) -> None:
    problem = build_problem(subject, menu, predictor.additive_cost).bounded(bits=2.3)
    choices = uniform_choices(problem)
    low, high = at_rate(problem, 2.0), at_rate(problem, 2.5)
    for choice in choices:
        assert problem.fits(choice)
        assert ((choice == low) | (choice == high)).all() and (choice != low).any()
    assert len({tuple(choice) for choice in choices}) > 1
    assert (uniform_choice(problem) == choices[0]).all()
    left_over = problem.limits[0] - problem.total("weight_bytes", choices[0])
    steps = problem.amounts["weight_bytes"][range(6), high] - problem.amounts["weight_bytes"][range(6), low]
    assert all(step > left_over for step, taken in zip(steps, choices[0] == high, strict=True) if not taken)


def test_uniform_at_the_least_file_is_the_least_file(subject, menu, predictor) -> None:
    free = build_problem(subject, menu, predictor.additive_cost)
    problem = free.within(Budgets(file_bytes=free.minimum("file_bytes")))
    assert problem.total("file_bytes", uniform_choice(problem)) == free.minimum("file_bytes")


def test_a_heavy_pin_is_still_bounded(subject, menu, predictor) -> None:
    from sedaq.aq.plans.menu import entry
    from sedaq.aq.plans.plan import file_bytes

    heavy = {layer.name: (entry(subject, layer, Format.parse("8x8g8")),) for layer in subject.layers}
    problem = build_problem(subject, heavy, predictor.additive_cost)
    only = 0 * problem.n_options
    assert file_bytes(tensor_specs(subject, problem.formats(only))) <= problem.total("file_bytes", only)
