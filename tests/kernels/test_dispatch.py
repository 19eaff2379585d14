"""Which kernel is chosen, and that the choice does not change the result."""

from __future__ import annotations

import pytest
import torch

from sedaq.errors import InputError
from sedaq.kernels import bench
from sedaq.kernels.dispatch import KERNELS, choose, product
from sedaq.kernels.reference import dequantize


@pytest.fixture(autouse=True)
def no_kernel_forced(monkeypatch):
    monkeypatch.delenv("SEDAQ_KERNEL", raising=False)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_the_variable_forces_a_kernel(name, monkeypatch):
    matrix = bench.random_matrix(12, 10, 2, 4, 4)
    monkeypatch.setenv("SEDAQ_KERNEL", name)
    assert {choose(tokens, matrix) for tokens in (0, 1, 10_000)} == {name}
    x = torch.randn(2, 3, 10)
    assert torch.equal(product(x, matrix), KERNELS[name].product(x.reshape(6, 10), matrix).reshape(2, 3, 12))


def test_an_unknown_kernel_is_named_with_the_choices(monkeypatch):
    monkeypatch.setenv("SEDAQ_KERNEL", "magic")
    with pytest.raises(InputError, match=r"SEDAQ_KERNEL='magic'.*dequantize, reference"):
        product(torch.randn(1, 4), bench.random_matrix(4, 4, 1, 4, 4))


def test_the_choice_is_the_least_cost_and_repeats():
    matrix = bench.random_matrix(512, 512, 1, 16, 8)
    for tokens in (1, 16, 4096):
        chosen = choose(tokens, matrix)
        assert all(choose(tokens, matrix) == chosen for _ in range(5))
        assert KERNELS[chosen].cost(tokens, matrix) == min(kernel.cost(tokens, matrix) for kernel in KERNELS.values())
    # Many tokens pay for one de-quantization; few do not.
    assert choose(4096, matrix) == "dequantize"


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5), (2, 3, 5)])
def test_leading_dimensions_are_kept(shape):
    matrix = bench.random_matrix(7, 5, 2, 4, 2)
    x = torch.randn(shape)
    torch.testing.assert_close(product(x, matrix), x @ dequantize(matrix).T)


def test_a_comparison_has_the_documented_rows():
    rows = bench.compare([("1x4g4", 1, 16, 4)], shapes=[(16, 24)], tokens=(1, 3), repeats=1)
    assert len(rows) == 2 * len(KERNELS)
    for row in rows:
        assert {"layer", "tokens", "format", "precision", "threads", "ms", "rel_err", "ratio"} <= row.keys()
        assert set(row["ratio"]) == {"torch_f32", "torch_bf16", "torch_int8", "dequant_f32"}
        assert row["layer"] == "24->16" and row["format"] == "1x4g4" and row["ms"] > 0
        assert 0 <= row["rel_err"] < 1e-5
        assert all(ratio > 0 for ratio in row["ratio"].values())


def test_random_matrices_repeat_for_a_seed():
    first, second, other = (bench.random_matrix(4, 6, 1, 4, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.codebooks, second.codebooks)
    assert not torch.equal(first.codebooks, other.codebooks)
