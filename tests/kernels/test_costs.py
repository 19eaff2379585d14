"""The law of costs: its terms, its fit to known times, and that it is measured once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sedaq.kernels import costs, native
from sedaq.kernels.costs import cheapest, random_matrix, terms


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path))
    costs._law.cache_clear()
    yield
    costs._law.cache_clear()


def test_terms_are_those_of_the_law():
    assert terms(17, 3, 5, 2, 4).tolist() == [1, 17 * 5, 3 * 2 * 4, 3 * 5, 32 * 3 * 5, 17 * 3]
    assert terms(7, 3, 5, 2, 4).tolist() == [1, 7 * 5, 3 * 2 * 4, 3 * 5, 7 * 3 * 5, 7 * 3]


def test_the_cheapest_depends_on_the_tokens(monkeypatch):
    free, dear = [0.0] * 6, [1e9, 0, 0, 0, 0, 0]
    one = {"few": dear, "many": [1.0, 0, 0, 0, 1.0, 0]}
    monkeypatch.setattr(costs, "law", lambda: {"one": one, "other": {"few": free, "many": [1e6, 0, 0, 0, 0.1, 0]}})
    matrix = random_matrix(100, 100, 1, 4, 4)
    assert [cheapest(["one", "other"], tokens, matrix) for tokens in (8, 9, 16, 4096)] == ["other", "one", "one", "other"]
    assert cheapest(["other"], 1, matrix) == "other"


def test_the_fit_recovers_a_known_law(monkeypatch):
    """A clock that runs by a law."""
    factors = {"few": np.array([2e-5, 1e-10, 2e-10, 3e-10, 1e-11, 4e-11]), "many": np.array([1e-5, 2e-10, 3e-10, 1e-10, 2e-12, 5e-11])}
    now = [0.0]

    def product(x, matrix):
        of_matrix = terms(len(x), matrix.n_out, matrix.n_in, matrix.codes.shape[1], matrix.codes.shape[2])
        now[0] += float(of_matrix @ factors["few" if len(x) <= costs.FEW else "many"])

    monkeypatch.setattr(costs.native, "available", lambda: ())
    monkeypatch.setattr(costs, "product_by_dequantizing", product)
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    for many, found in costs.measure()["dequantize"].items():
        np.testing.assert_allclose(found, factors[many], rtol=1e-4)


def test_it_is_measured_once_for_a_number_of_threads_and_kept(monkeypatch, tmp_path):
    calls = []

    def measure():
        calls.append(torch.get_num_threads())
        return {"dequantize": dict.fromkeys(("few", "many"), [float(len(calls))] * 6)}

    monkeypatch.setattr(costs, "measure", measure)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 1, 2):
            torch.set_num_threads(n)
            costs._law.cache_clear()  # as another process
            assert costs.law()["dequantize"]["many"] == [float(n)] * 6
    finally:
        torch.set_num_threads(threads)
    assert calls == [1, 2] and len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_failure(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(costs, "measure", lambda: {"dequantize": {"many": [1.0] * 6}})
    assert costs.law() == {"dequantize": {"many": [1.0] * 6}}
    assert "the measurement is not kept" in caplog.text


def test_other_kernels_have_another_file(monkeypatch):
    first = costs.machine()
    monkeypatch.setattr(native, "fingerprint", lambda: "other")
    assert costs.machine() != first


@pytest.mark.slow
def test_the_measurement_takes_no_more_than_20_seconds():
    import time

    start = time.perf_counter()
    found = costs.law()
    assert time.perf_counter() - start < 20
    assert set(found) == {"dequantize", *native.available()} and all(
        min(factors) >= 0 < max(factors) for of_kernel in found.values() for factors in of_kernel.values()
    )
