"""A uniform plan of a model that was never probed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sedaq
from sedaq.aq.formats import AS_IS, Format
from sedaq.errors import InputError
from sedaq.models.loading import load
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.unmeasured import uniform_plan
from sedaq.sensitivity.plan_encodings import store_for_plan


@pytest.mark.parametrize("bits", [2.6, 3.0, 4.0])
def test_it_is_within_its_budget_and_uses_it(pipeline_folder: Path, bits: float) -> None:
    subject = load(pipeline_folder)
    plan = uniform_plan(subject, Budget(bits=bits))
    plan.validate(subject)
    assert bits - 0.3 < plan.bits_per_weight <= bits and plan.budget == {"bits_per_weight": bits}
    by_size = uniform_plan(subject, Budget(size=plan.size_bytes))
    assert by_size.size_bytes <= plan.size_bytes


def test_constraints_hold_and_other_budgets_are_refused(pipeline_folder: Path) -> None:
    subject = load(pipeline_folder)
    plan = uniform_plan(subject, Budget(bits=6.0), SearchConfig(pin={"conv_in": "int8"}, keep=("conv_out",)))
    assert plan.formats["conv_in"] == Format.parse("int8") and plan.formats["conv_out"] == AS_IS
    with pytest.raises(InputError, match="need a run that was probed"):
        uniform_plan(subject, Budget(ms_per_step=3.0))


@pytest.mark.parametrize(
    "option", [{"activations": 8}, {"verify": 8}, {"solver": "exact"}, {"images": 64}, {"risk": 0.0}, {"storage": "a.log"}, {"trials": 9}]
)
def test_options_of_a_search_are_refused(pipeline_folder: Path, option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(option))}`: it is for a search; a uniform plan"):
        uniform_plan(load(pipeline_folder), Budget(bits=3.0), SearchConfig(**option))


def test_it_can_be_applied_without_a_run(pipeline_folder: Path, tmp_path: Path) -> None:
    plan = sedaq.uniform_plan(pipeline_folder, Budget(bits=3.0))
    found, store = store_for_plan(plan, str(pipeline_folder), None, tmp_path)
    assert found == plan and store.identity == plan.encoding
