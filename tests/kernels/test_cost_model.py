"""The cost model: its terms, its fit to known times, and that it is measured once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sedaq.kernels import cost_model, native
from sedaq.kernels.cost_model import cheapest, random_matrix, terms
from sedaq.storage import cache_folder, write_json


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path))
    cost_model._factors.cache_clear()
    yield
    cost_model._factors.cache_clear()


def test_terms_are_those_of_the_law():
    matrix = random_matrix(3, 5, 4, 16, 3)  # 2 groups
    assert terms("f32-avx2", 17, matrix).tolist() == [1, 17 * 5, 3 * 2 * 4, 3 * 5, 32 * 3 * 5, 17 * 3]
    assert terms("f32-avx2", 7, matrix).tolist() == [1, 7 * 5, 3 * 2 * 4, 3 * 5, 7 * 3 * 5, 7 * 3]


@pytest.mark.parametrize(("structure", "n_words"), [("", 16), ("m", 8), ("h", 8)])
def test_terms_of_tables_count_the_codewords_that_are_multiplied(structure, n_words):
    matrix = random_matrix(3, 5, 4, 16, 3, structure)
    for name, tile in (("lookup32-portable", 16), ("lookup16-avx512", 32), ("lookup8-avx512", 64)):
        expected = [1, 9 * 5, cost_model.SHORT * tile * 3 * 2 * 4, tile * 5 * 4 * n_words, tile * 2 * 4 * 16, 9 * 3]
        assert terms(name, 9, matrix).tolist() == expected
        assert terms(name, 8, matrix).tolist() == [1, 2 * 4 * 16, 3 * 2 * 4, 8 * 3 * 2 * 4, 5 * 4 * n_words, 8 * 3]


@pytest.mark.parametrize(("kernel", "n_out", "n_entries"), [("avx2", 2047, 32), ("avx2", 2048, 256), ("avx512", 8, 256)])
def test_short_tables_of_halves_are_counted_where_they_are_used(kernel, n_out, n_entries):
    matrix = random_matrix(n_out, 16, 2, 256, 8, "h")
    lookups = 2 * cost_model.SHORT if n_entries == 32 else 1
    assert terms(f"lookup32-{kernel}", 16, matrix)[2] == pytest.approx(lookups * 16 * n_out * 2 * 2)
    assert terms(f"lookup32-{kernel}", 16, matrix)[4] == 16 * 2 * 2 * n_entries


def test_rounding_is_paid_for_by_kernels_that_do_not_round(monkeypatch):
    factors = {"f32-avx2": 1.0, "int8-avx2": 3.0, "dequantize": 4.0, cost_model.ROUNDING: 2.5}
    monkeypatch.setattr(
        cost_model, "factors", lambda: {name: {key: [factor] + [0.0] * 5 for key in cost_model.SIZES} for name, factor in factors.items()}
    )
    matrix, names = random_matrix(8, 8, 1, 16, 4), ["f32-avx2", "int8-avx2", "dequantize"]
    assert [cost_model.seconds(name, 20, matrix) for name in names] == [1.0, 3.0, 4.0]
    assert [cost_model.seconds(name, 20, matrix, "a8") for name in names] == [3.5, 3.0, 6.5]
    assert (cheapest(names, 20, matrix), cheapest(names, 20, matrix, "a8")) == ("f32-avx2", "int8-avx2")


@pytest.mark.parametrize("structure", ["", "m", "h"])
def test_random_codebooks_have_the_structure_that_they_say(structure):
    books = random_matrix(4, 8, 2, 16, 4, structure).codebooks
    grid = books.unflatten(1, (4, 4))
    assert torch.equal(books[:, 8:], -books[:, :8]) == (structure == "m")
    assert torch.allclose(grid - grid[:, :, :1], (grid - grid[:, :, :1])[:, :1].expand_as(grid), atol=1e-6) == (structure == "h")


def test_the_cheapest_depends_on_the_tokens(monkeypatch):
    free, dear = [0.0] * 6, [1e9, 0, 0, 0, 0, 0]
    one = {"few": dear, "many": [1.0, 0, 0, 0, 1.0, 0]}
    monkeypatch.setattr(cost_model, "factors", lambda: {"one": one, "other": {"few": free, "many": [1e6, 0, 0, 0, 0.1, 0]}})
    matrix = random_matrix(100, 100, 1, 4, 4)
    assert [cheapest(["one", "other", "not in the model"], tokens, matrix) for tokens in (8, 9, 16, 4096)] == [
        "other",
        "one",
        "one",
        "other",
    ]
    assert cheapest(["other"], 1, matrix) == "other"


def test_candidates_are_the_widest_of_every_family(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: ("f32-portable", "f32-avx2", "bf16-avx512", "bf16-amx", "lookup8-avx512"))
    assert cost_model.candidates() == ("dequantize", "f32-avx2", "bf16-amx", "lookup8-avx512")


def test_a_stored_law_decides_where_the_same_kernels_are_to_be_had(monkeypatch, caplog):
    def always(factor):
        return {size: [factor] * 6 for size in cost_model.SIZES}

    monkeypatch.setattr(cost_model, "candidates", lambda: ("one", "other"))
    monkeypatch.setattr(cost_model, "factors", lambda: {"one": always(1.0), "other": always(2.0)})
    matrix = random_matrix(8, 8, 1, 4, 4)
    stored = {"threads": 3, "law": {"one": always(2.0), "other": always(1.0), cost_model.ROUNDING: always(0.0)}}
    name = cost_model.adopt(stored)
    assert cheapest(["one", "other"], 1, matrix) == "one"
    assert cheapest(["one", "other"], 1, dataclasses.replace(matrix, cost_model=name)) == "other"
    with caplog.at_level("INFO", logger="sedaq"):
        assert cost_model.adopt({"threads": 3, "law": {"one": stored["law"]["one"]}}) == ""
    assert "chosen anew" in caplog.text


def test_the_fit_recovers_a_known_law(monkeypatch):
    """A clock that runs by a cost model."""
    factors = {
        "one": np.array([3e-5, 2e-10, 1e-10, 2e-10, 2e-11, 1e-11]),
        "few": np.array([2e-5, 1e-10, 2e-10, 3e-10, 1e-11, 4e-11]),
        "many": np.array([1e-5, 2e-10, 3e-10, 1e-10, 2e-12, 5e-11]),
    }
    now = [0.0]

    def product(x, matrix):
        now[0] += float(terms("dequantize", len(x), matrix) @ factors[cost_model._size(len(x))])

    def rounded(x):
        now[0] += 1e-6

    monkeypatch.setattr(cost_model.native, "available", lambda: ())
    monkeypatch.setattr(cost_model, "product_by_dequantizing", product)
    monkeypatch.setattr(cost_model, "rounded", rounded)
    monkeypatch.setattr(cost_model, "clock", lambda: now[0])
    for many, found in cost_model.measure()["dequantize"].items():
        np.testing.assert_allclose(found, factors[many], rtol=1e-4)


def test_it_is_measured_once_for_a_number_of_threads_and_kept(monkeypatch, tmp_path):
    calls = []

    def measure():
        calls.append(torch.get_num_threads())
        return {name: {size: [float(len(calls))] * 6 for size in cost_model.SIZES} for name in ("dequantize", cost_model.ROUNDING)}

    monkeypatch.setattr(cost_model, "measure", measure)
    monkeypatch.setattr(cost_model, "candidates", lambda: ("dequantize",))
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 1, 2):
            torch.set_num_threads(n)
            cost_model._factors.cache_clear()  # as another process
            assert cost_model.factors()["dequantize"]["many"] == [float(n)] * 6
    finally:
        torch.set_num_threads(threads)
    assert calls == [1, 2] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("other", [{"dequantize": {"many": [1.0] * 6}}, {"dequantize": {size: [1.0] * 6 for size in cost_model.SIZES}}])
def test_a_cache_of_another_version_is_measured_anew(monkeypatch, caplog, other):
    measured = {name: {size: [2.0] * 6 for size in cost_model.SIZES} for name in ("dequantize", cost_model.ROUNDING)}
    monkeypatch.setattr(cost_model, "measure", lambda: measured)
    monkeypatch.setattr(cost_model, "candidates", lambda: ("dequantize",))
    path = cache_folder() / f"kernels-{cost_model.machine()}-{torch.get_num_threads()}.json"
    write_json(path, "kernel costs", {"law": other})
    assert cost_model.factors() == measured and "measuring anew" in caplog.text
    cost_model._factors.cache_clear()
    monkeypatch.setattr(cost_model, "measure", lambda: {})
    assert cost_model.factors() == measured


def test_a_cache_that_cannot_be_written_is_no_failure(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cost_model, "measure", lambda: {"dequantize": {"many": [1.0] * 6}})
    assert cost_model.factors() == {"dequantize": {"many": [1.0] * 6}}
    assert "the measurement is not kept" in caplog.text


def test_other_kernels_have_another_file(monkeypatch):
    first = cost_model.machine()
    monkeypatch.setattr(native, "fingerprint", lambda: "other")
    assert cost_model.machine() != first


@pytest.mark.slow
def test_the_measurement_takes_no_more_than_20_seconds():
    import time

    start = time.perf_counter()
    found = cost_model.factors()
    assert time.perf_counter() - start < 20
    assert set(found) == {*cost_model.candidates(), cost_model.ROUNDING} and all(
        min(factors) >= 0 < max(factors) for of_kernel in found.values() for factors in of_kernel.values()
    )
