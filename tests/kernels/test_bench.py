"""The comparison's rows: what is documented, errors within the class, and convolutions."""

from __future__ import annotations

import pytest

from sedaq.kernels import bench, cost_model, native
from sedaq.kernels.dispatch import IN_TORCH, KERNELS, PRECISIONS

HERE = (*IN_TORCH, *native.available())


@pytest.fixture(autouse=True)
def costs(monkeypatch):
    monkeypatch.delenv("SEDAQ_KERNEL", raising=False)
    names = (cost_model.ROUNDING, *reversed(HERE[1:]))
    factors = {name: {key: [float(place), 0, 0, 0, 0, 0] for key in cost_model.SIZES} for place, name in enumerate(names)}
    monkeypatch.setattr(cost_model, "factors", lambda: factors)


def classes_of(name):
    """In which a kernel is timed."""
    return {"exact": ["exact", "bf16", "a8"], "bf16": ["bf16"], "a8": ["a8"]}[KERNELS[name].precision]


def test_rows_have_what_is_documented():
    rows = bench.compare([("1x4g4", 1, 16, 4, "")], shapes=[(16, 24)], tokens=(1, 17), repeats=1)
    expected = {(t, precision, name) for t in (1, 17) for name in HERE[1:] for precision in classes_of(name)} | {(1, "exact", "reference")}
    assert {(row["tokens"], row["precision"], row["kernel"]) for row in rows} == expected and len(rows) == len(expected)
    for row in rows:
        assert {"layer", "tokens", "format", "precision", "threads", "ms", "rel_err", "ratio", "chosen"} <= row.keys()
        assert set(row["ratio"]) == {"torch_f32", "torch_bf16", "torch_int8", "dequant_f32"}
        assert row["layer"] == "24->16" and row["format"] == "1x4g4" and row["ms"] > 0
        assert 0 <= row["rel_err"] < PRECISIONS[row["precision"]]
        assert all(ratio > 0 for ratio in row["ratio"].values())
    for tokens in (1, 17):
        for precision in PRECISIONS:
            assert sum(row["chosen"] for row in rows if (row["precision"], row["tokens"]) == (precision, tokens)) == 1


def test_a_convolution_has_no_8_bit_peer():
    rows = bench.compare([("2x4g4h", 2, 16, 4, "h")], shapes=[(8, 4, 3)], tokens=(16, 2048), kernels=HERE[1:], repeats=1)
    assert {(row["precision"], row["kernel"]) for row in rows} == {(precision, name) for name in HERE[1:] for precision in classes_of(name)}
    for row in rows:
        assert row["layer"] == "4->8 3x3" and row["tokens"] == 2048 and row["ratio"]["torch_int8"] is None
        assert 0 <= row["rel_err"] < PRECISIONS[row["precision"]]


def test_choices_are_compared_with_the_fastest_of_the_class():
    def row(precision, kernel, ms, chosen=False, tokens=1):
        return {
            "layer": "l",
            "tokens": tokens,
            "format": "f",
            "precision": precision,
            "threads": 1,
            "kernel": kernel,
            "ms": ms,
            "chosen": chosen,
        }

    rows = [
        row("exact", "a", 1.0, True),
        row("exact", "b", 2.0),
        row("a8", "a", 3.0, True),
        row("a8", "c", 2.0),
        row("exact", "a", 5.0, True, 2),
    ]
    assert bench.choices(rows) == {"cases": 3, "within_1.1": 2 / 3, "worst": 1.5}
