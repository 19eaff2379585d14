"""The examples in docstrings do what they say."""

import doctest
import importlib

import pytest

MODULES = [
    "sedaq.models.hooks",
    "sedaq.models.sampling",
    "sedaq.runtime.tasks",
    "sedaq.runtime.journal",
    "sedaq.runtime.executors",
    "sedaq.aq.formats",
    "sedaq.aq.encoder.encoder",
    "sedaq.aq.modules.layers",
    "sedaq.sensitivity.metrics.frechet",
    "sedaq.search.budgets",
    "sedaq.reports.numbers",
    "sedaq.reports.style",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
