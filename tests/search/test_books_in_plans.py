"""Plans of a model whose layers may share codebooks: what is searched is what is on disk."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import Entry, layer_menu
from sedaq.aq.plans.plan import SAFETENSORS_METADATA, tensor_specs
from sedaq.errors import InputError
from sedaq.models.subject import Subject
from sedaq.search.building import build_problem
from sedaq.search.find import find_front, find_plan

from .conftest import FakePredictor

SHARED = {1.5: "1x6g5q@blocks", 2.0: "1x7g4q@blocks", 3.0: "1x8g3@blocks"}


@pytest.fixture(scope="module")
def blocks() -> Subject:
    """Twelve layers of one role, one that is much larger than the others, and one of another role."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(192 if i == 7 else 48, 48) for i in range(12)])
            self.head = nn.Linear(48, 8)

    denoiser = Model()
    stored = dict.fromkeys(denoiser.state_dict(), torch.float16)
    return Subject(denoiser, sample=lambda **_: torch.zeros(1, 1, 1, 1), name="blocks", stored_dtypes=stored)


@pytest.fixture(scope="module")
def shared_menus(blocks: Subject) -> dict[str, tuple[Entry, ...]]:
    own = {1.5: "1x3g4", 2.0: "1x4g3q", 3.0: "1x5g2"}
    return {
        layer.name: layer_menu(
            blocks, layer, {rate: Format.parse(text) for rate, text in (SHARED if layer.role == "blocks" else own).items()}
        )
        for layer in blocks.layers
    }


@pytest.fixture
def sensitive(blocks: Subject) -> FakePredictor:
    return FakePredictor({layer.name: float(8.0 ** (i % 4)) * layer.n_weights / 1e4 for i, layer in enumerate(blocks.layers)})


def test_the_bound_on_file_bytes_holds_on_disk_and_is_close(blocks, shared_menus, sensitive) -> None:
    problem = build_problem(blocks, shared_menus, sensitive.additive_cost)
    rng = np.random.default_rng(0)
    for choice in [*rng.integers(0, problem.n_options, (20, len(problem.units))), 0 * problem.n_options, problem.n_options - 1]:
        specs = tensor_specs(blocks, problem.formats(choice))
        data = safetensors.torch.save(
            {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in specs.items()}, SAFETENSORS_METADATA
        )
        assert len(data) <= problem.total("file_bytes", choice) <= len(data) + 400


@pytest.mark.parametrize("budget", [{"bits": 2.2}, {"size_bytes": 17_000}, {"bits": 2.6, "size_bytes": 18_000}])
@pytest.mark.parametrize("solver", ["exact", "optuna", "auto"])
def test_plans_are_within_their_budgets(blocks, shared_menus, sensitive, budget, solver) -> None:
    found = find_plan(blocks, shared_menus, sensitive, **budget, solver=solver, n_trials=16)
    assert any(format.book for format in found.plan.formats.values())
    assert found.plan.bits_per_weight <= budget.get("bits", 16)
    assert found.plan.size_bytes <= found.uniform.size_bytes <= budget.get("size_bytes", 10**9)
    found.plan.validate(blocks)


def test_a_front_is_ascending(blocks, shared_menus, sensitive) -> None:
    front = find_front(blocks, shared_menus, sensitive, n_trials=8)
    assert all(found.plan.bits_per_weight <= found.plan.budget["bits_per_weight"] for found in front)
    values = [found.predicted["value"] for found in front]
    assert values == sorted(values, reverse=True)


def test_pinned_layers_share_the_books_of_the_menu(blocks, shared_menus, sensitive) -> None:
    """A pin to a format on the menu adds no codebooks of its own."""
    text = SHARED[2.0]
    plain = find_plan(
        blocks, shared_menus, sensitive, bits=8, pins={"blocks.*": Format.parse(text), "head": Format("int8")}, solver="exact"
    )
    assert {str(format) for format in plain.plan.formats.values()} == {text, "int8"}
    sizes = [Format.parse(text).size_bytes(layer.shape) for layer in blocks.layers[:12]]
    book = 128 * 4 + 2  # int8 codebooks and their scale
    assert plain.plan.bits_per_weight * sum(layer.n_weights for layer in blocks.layers) / 8 == pytest.approx(
        sum(sizes) - 11 * book + Format("int8").size_bytes(blocks.layers[12].shape)
    )


def test_a_shared_format_above_its_rate_for_one_layer_is_no_note(blocks, shared_menus, sensitive) -> None:
    """A book is paid for by all that share it, so a single small layer may take more than the rate."""
    found = find_plan(blocks, shared_menus, sensitive, bits=2.2, solver="exact")
    rates = {layer.name: {entry.format: entry.rate for entry in shared_menus[layer.name]} for layer in blocks.layers}
    above = [
        layer.name
        for layer in blocks.layers
        if 8 * (found.plan.formats[layer.name].size_bytes(layer.shape) - 514) / layer.n_weights
        > rates[layer.name][found.plan.formats[layer.name]]
    ]
    assert any(found.plan.formats[name].book for name in above)
    assert not [note for note in found.plan.provenance["notes"] if "no format within" in note and "@" in note]


def test_the_least_bits_of_a_message_can_be_had(blocks, shared_menus, sensitive) -> None:
    with pytest.raises(InputError, match="cannot be met; the least reachable is") as caught:
        find_plan(blocks, shared_menus, sensitive, bits=0.5, solver="exact")
    least = float(str(caught.value).partition("reachable is ")[2].split()[0])
    assert find_plan(blocks, shared_menus, sensitive, bits=least, solver="exact").plan.bits_per_weight <= least
