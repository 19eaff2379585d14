"""A step of codes that is added from here: one row of the table, and tuning takes it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sedaq.aq.tuning.code_steps import CODE_STEPS
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.tunable import TunableLayer
from sedaq.aq.tuning.tune import tune
from sedaq.errors import InputError


def test_a_step_of_codes(subject, encodings, small, monkeypatch) -> None:
    moved: list[TunableLayer] = []

    def stay(layer: TunableLayer, settings: TuneConfig):
        moved.append(layer)
        return CODE_STEPS["none"](layer, settings)

    with pytest.raises(InputError, match="code_step 'stay' is unknown"):
        replace(small, code_step="stay")
    monkeypatch.setitem(CODE_STEPS, "stay", stay)
    tuned = tune(subject, encodings, replace(small, steps=4, code_step="stay"))
    assert moved and tuned.losses
    assert all(
        tuned.encodings[name].tensors["codes"].equal(e.tensors["codes"]) for name, e in encodings.items() if e.format.kind == "additive"
    )
