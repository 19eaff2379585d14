"""The examples of docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch
from torch import nn

MODULES = (
    "api",
    "aq.encoder.encoder",
    "aq.formats",
    "aq.modules.quantize",
    "models.sampling",
    "runtime.executors",
    "runtime.journal",
    "runtime.tasks",
    "search.budgets",
    "search.config",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    module = importlib.import_module(f"sedaq.{name}")
    result = doctest.testmod(module, extraglobs={**vars(module), "torch": torch, "nn": nn})
    assert result.attempted > 0 and result.failed == 0
