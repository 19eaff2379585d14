"""The files that `fit` writes: whatever happens to one of them, `fit` makes it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sedaq.sensitivity.predictor.fitting import fit, load_predictor
from sedaq.sensitivity.run import Run

FILES = ("additive.json", "fit.json", "sensitivity.csv", "groups.csv", "interactions.csv")
HARMS: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "edited": lambda path: path.write_text(path.read_text().replace("1", "2", 1)),
}


@pytest.mark.usefixtures("fast_fit")
@pytest.mark.parametrize("harm", ["cut", *(pytest.param(harm, marks=pytest.mark.slow) for harm in ("gone", "empty", "edited"))])
def test_a_damaged_fit_is_made_again(harm: str, run: Run) -> None:
    fit(run)
    folder = run.folder / "predictor"
    before = {name: (folder / name).read_bytes() for name in FILES}
    for name in FILES:
        HARMS[harm](folder / name)
        fit(run)
        assert {name: (folder / name).read_bytes() for name in FILES} == before, name
    assert load_predictor(run) is not None
