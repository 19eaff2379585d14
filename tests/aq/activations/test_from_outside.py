"""A scheme of activations that is added from here: one row of the table."""

from __future__ import annotations

import pytest

from sedaq.aq.activations.quantizer import RANGES, SCHEMES, Activation, Scheme
from sedaq.errors import InputError


def test_a_scheme(monkeypatch) -> None:
    with pytest.raises(InputError, match="'mine' is unknown"):
        Activation(8, "mine")
    monkeypatch.setitem(SCHEMES, "mine", Scheme(static=True, affine=False))
    assert Activation(8, "mine").is_static and set(Activation(8, "mine").tensor_specs()) == {RANGES}
