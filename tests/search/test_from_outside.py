"""A solver that is added from here: one row of the table."""

from __future__ import annotations

import numpy as np
import pytest

from sedaq.errors import InputError
from sedaq.search.evaluate import Evaluator
from sedaq.search.find import find_plan
from sedaq.search.solvers import SOLVERS, Effort, Solution


def test_a_solver(subject, menu, predictor, monkeypatch) -> None:
    def cheapest(evaluator: Evaluator, effort: Effort) -> Solution:
        best = evaluator([np.zeros(len(evaluator.problem.units), dtype=int)], "cheapest")[0]
        return Solution(best, None, 0, {}, (best,))

    with pytest.raises(InputError, match="solver 'cheapest' is unknown"):
        find_plan(subject, menu, predictor, bits=2.4, solver="cheapest")
    monkeypatch.setitem(SOLVERS, "cheapest", cheapest)
    found = find_plan(subject, menu, predictor, bits=2.4, solver="cheapest")
    assert found.solver == "cheapest"
    assert all(format == menu[name][0].format for name, format in found.plan.formats.items())
