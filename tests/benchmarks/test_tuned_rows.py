"""Rows of tuned models stay as long as they are of the model that is asked for."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tuned_rows import Rows, identity_of

from sedaq.aq.tuning.settings import TuneConfig
from sedaq.errors import InputError
from sedaq.sensitivity.metrics.bootstrap import Estimate


def rows_without_measuring(folder: Path = Path()) -> Rows:
    """Rows of one noise seed, whose every excess is 1; nothing is sampled, and files go to `folder`."""
    rows = object.__new__(Rows)
    rows.run = SimpleNamespace(folder=folder)  # type: ignore[assignment]
    rows.name, rows.command, rows.folder = "rows", "python rows.py", folder
    rows.seeds, rows.n_images, rows.steps, rows.conditions, rows.rows = (1,), 8, 2, {}, {}
    rows._measured = lambda name, seed, state: ({"fid": Estimate(4.0, 0.1, (4.0, 4.0))}, (1.0, 0.9, 1.1))  # type: ignore[method-assign]
    return rows


def test_a_row_stays_until_what_it_is_of_is_another(tmp_path: Path) -> None:
    rows, made = rows_without_measuring(tmp_path), []

    def make(plan: str, settings: TuneConfig | None) -> Any:
        made.append(plan)
        return nullcontext, {"plan": plan, "tuning": identity_of(settings)}

    def row(plan: str, settings: TuneConfig | None = None) -> None:
        rows.row("2 bits", lambda: make(plan, settings), identity={"plan": plan, "tuning": identity_of(settings)})

    row("a")
    row("a")
    assert made == ["a"]
    row("b")
    row("b", TuneConfig(refresh_every=0))
    row("b", TuneConfig())
    row("b", TuneConfig(refresh_every=150))
    assert made == ["a", "b", "b", "b"], "the same settings make the same row"
    (kept,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (kept["plan"], kept["excess"]["value"]) == ("b", 1.0)
    del rows.rows["2 bits"]["tuning"]  # a row of an earlier version
    row("b", TuneConfig())
    assert len(made) == 5


def test_what_a_row_is_compared_with_has_to_be_there_before_it_is_made(tmp_path: Path) -> None:
    rows = rows_without_measuring(tmp_path)

    def never() -> Any:
        raise AssertionError

    for known in ({}, {"first": {}}):  # no row; a row whose images another run has
        rows.rows = known
        with pytest.raises(
            InputError, match="second: it is compared with 'first', which was not measured on this run; measure that row first"
        ):
            rows.row("second", never, against="first")
