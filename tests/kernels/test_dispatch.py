"""Which kernel is chosen, and that the choice changes the result by no more than its class of arithmetic allows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sedaq.errors import InputError
from sedaq.kernels import cost_model, dispatch, native
from sedaq.kernels.cost_model import random_matrix
from sedaq.kernels.dispatch import IN_TORCH, KERNELS, PRECISIONS, choose, product, product_by, rounded, usable
from sedaq.kernels.quantized_matrix import Geometry
from sedaq.kernels.reference import dequantize

HERE = (*IN_TORCH, *native.available())


@pytest.fixture(autouse=True)
def no_kernel_forced(monkeypatch):
    monkeypatch.delenv("SEDAQ_KERNEL", raising=False)


@pytest.fixture
def costs(monkeypatch):
    """A kernel's cost is its place in the list, unless a test says otherwise."""
    names = ("dequantize", *native.available(), cost_model.ROUNDING)
    factors = {name: {key: [float(place), 0, 0, 0, 0, 0] for key in cost_model.SIZES} for place, name in enumerate(names)}
    monkeypatch.setattr(cost_model, "factors", lambda: factors)
    return factors


@pytest.mark.parametrize("name", HERE)
def test_the_variable_forces_a_kernel(name, monkeypatch):
    matrix = random_matrix(12, 10, 2, 4, 4)
    monkeypatch.setenv("SEDAQ_KERNEL", name)
    x = torch.randn(2, 3, 10)
    precision = KERNELS[name].precision
    assert {choose(x, tokens, matrix, precision) for tokens in (0, 1, 10_000)} == {name}
    assert torch.equal(product(x, matrix, precision=precision), KERNELS[name].product(x, matrix, None, None))


def test_a_forced_kernel_of_another_class_leaves_the_choice(monkeypatch, costs):
    matrix, x = random_matrix(12, 10, 2, 4, 4), torch.randn(2, 10)
    for name in set(native.available()):
        monkeypatch.setenv("SEDAQ_KERNEL", name)
        for precision in PRECISIONS:
            chosen = choose(x, 2, matrix, precision)
            serving = {kernel for kernel in usable(x, precision) if kernel in IN_TORCH or native.serves(kernel, matrix)}
            assert chosen in serving and (chosen == name or name not in serving)


@pytest.mark.parametrize("name", [name for name in native.available() if name.startswith("shuffle8")])
def test_byte_shuffles_are_chosen_for_formats_that_they_serve(name, monkeypatch, costs):
    x = torch.randn(50, 10)
    monkeypatch.setenv("SEDAQ_KERNEL", name)
    for k, structure, served in [
        (16, "", True),
        (16, "m", True),
        (64, "h", True),
        (256, "h", True),
        (256, "", False),
        (64, "m", False),
        (1024, "h", False),
    ]:
        matrix = random_matrix(12, 10, 2, k, 4, structure)
        assert native.serves(name, matrix) == served
        assert (choose(x, 50, matrix, "a8") == name) == served


def test_an_unknown_kernel_is_named_with_the_choices(monkeypatch):
    monkeypatch.setenv("SEDAQ_KERNEL", "magic")
    with pytest.raises(InputError, match=r"SEDAQ_KERNEL='magic' names no kernel of this machine.*dequantize.*reference"):
        product(torch.randn(1, 4), random_matrix(4, 4, 1, 4, 4))


def test_an_unknown_precision_is_named_with_the_choices():
    with pytest.raises(InputError, match="precision 'int4' is unknown; choose one of exact, bf16, a8"):
        product(torch.randn(1, 4), random_matrix(4, 4, 1, 4, 4), precision="int4")


def test_kernels_serve_their_class_and_coarser_ones():
    x = torch.randn(1, 4)
    for precision in PRECISIONS:
        for name in usable(x, precision):
            assert PRECISIONS[KERNELS[name].precision] <= PRECISIONS[precision]
    assert set(usable(x, "exact")) <= set(usable(x, "bf16"))
    assert usable(x.bfloat16(), "exact") == usable(x, "bf16")
    assert usable(x.double(), "bf16") == list(IN_TORCH) == usable(x.double(), "a8")


def test_the_cheapest_is_chosen_and_lookup_in_torch_never_is(costs):
    matrix, x = random_matrix(8, 8, 1, 16, 8), torch.randn(3, 8)
    assert choose(x, 3, matrix) == "dequantize"
    costs["dequantize"] = {key: [0, 0, 0, 0, 1.0, 0] for key in cost_model.SIZES}
    dispatch._choices.clear()
    if native.available():
        assert choose(x, 3, matrix) == native.available()[0]


@pytest.mark.parametrize("tokens", [1, 8, 9, 500])
def test_8_bits_are_multiplied_exactly_where_that_and_rounding_take_less(costs, tokens):
    matrix, rng = random_matrix(8, 12, 1, 16, 4), torch.Generator().manual_seed(0)
    coarse = [name for name in native.available() if native.KERNELS[name] == "a8" and native.serves(name, matrix)]
    for name in costs:
        costs[name] = {key: [1.0 if name in coarse else 10.0, 0, 0, 0, 0, 0] for key in cost_model.SIZES}
    costs["dequantize"] = {key: [0.3, 0, 0, 0, 0, 0] for key in cost_model.SIZES}
    x = torch.randn(tokens, 12, generator=rng)
    costs[cost_model.ROUNDING] = {key: [0.8, 0, 0, 0, 0, 0] for key in cost_model.SIZES}
    assert choose(x, tokens, matrix, "a8") in (coarse or ["dequantize"])
    costs[cost_model.ROUNDING] = {key: [0.6, 0, 0, 0, 0, 0] for key in cost_model.SIZES}
    dispatch._choices.clear()
    assert choose(x, tokens, matrix, "a8") == "dequantize" == choose(x, tokens, matrix)
    torch.testing.assert_close(product(x, matrix, precision="a8"), rounded(x) @ dequantize(matrix).T)


def test_rows_whose_8_bit_sums_would_not_fit(monkeypatch, costs):
    """Every product the greatest there is; kernels of 8-bit integers the cheapest."""
    n_in = native.MAX_INPUTS_8_BITS + 8
    matrix = dataclasses.replace(random_matrix(3, n_in, 1, 4, 8), codebooks=torch.ones(1, 4, 8))
    for name in costs:
        costs[name] = {key: [float(not name.startswith("int8")), 0, 0, 0, 0, 0] for key in cost_model.SIZES}
    x = torch.ones(20, n_in)
    assert not choose(x, 20, matrix, "a8").startswith("int8")
    torch.testing.assert_close(product(x, matrix, precision="a8"), torch.full((20, 3), float(n_in)), rtol=3e-2, atol=0)


def test_without_compiled_kernels_torch_serves(monkeypatch, costs):
    monkeypatch.setattr(native, "available", lambda: ())
    matrix, x = random_matrix(8, 12, 1, 16, 4), torch.randn(3, 12)
    assert {choose(x, 3, matrix, precision) for precision in PRECISIONS} == {"dequantize"}
    dense = dequantize(matrix)
    torch.testing.assert_close(product(x, matrix), x @ dense.T)
    torch.testing.assert_close(product(x, matrix, precision="a8"), rounded(x) @ dense.T)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5), (2, 3, 5)])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_leading_dimensions_and_the_dtype_are_kept(shape, precision, dtype):
    matrix = random_matrix(7, 5, 2, 4, 2)
    x = torch.randn(shape, dtype=dtype)
    y = product(x, matrix, torch.ones(7), precision=precision)
    assert y.dtype == dtype and y.shape == (*shape[:-1], 7)
    torch.testing.assert_close(y, (x.double() @ dequantize(matrix).double().T + 1).to(dtype), atol=3e-2, rtol=3e-2)


def test_rounding_has_255_steps_a_token():
    x = torch.randn(50, 300) * torch.rand(50, 1)
    x[7] = 0
    y = rounded(x)
    steps = x.abs().amax(1, keepdim=True) / 127
    assert ((y - x).abs() <= steps * 0.5001).all() and torch.equal(y[7], x[7])
    assert all(len(row.unique()) <= 255 for row in y)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_convolution_in_every_class(precision):
    matrix = random_matrix(20, 3 * 9, 1, 16, 4)
    geometry, x = Geometry((3, 3), (2, 1), (1, 0), (1, 2)), torch.randn(2, 9, 8, 3)
    expected = torch.nn.functional.conv2d(x.movedim(-1, 1), dequantize(matrix).reshape(20, 3, 3, 3), None, (2, 1), (1, 0), (1, 2))
    found = product(x, dataclasses.replace(matrix, taps=9), None, geometry, precision)
    assert found.shape == expected.movedim(1, -1).shape
    assert (found - expected.movedim(1, -1)).norm() <= PRECISIONS[precision] * expected.norm()


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("ordered", [False, True])
def test_every_kernel_multiplies_rounded_patches(name, ordered):
    matrix = random_matrix(20, 3 * 9, 1, 16, 4)
    order = torch.arange(27).view(3, 9).T.reshape(-1) if ordered else None
    matrix = dataclasses.replace(matrix, taps=9, order=order)
    geometry, x = Geometry((3, 3), (2, 1), (1, 0), (1, 2)), torch.randn(2, 9, 8, 3)
    expected = torch.nn.functional.conv2d(x.movedim(-1, 1), dequantize(matrix).reshape(20, 3, 3, 3), None, (2, 1), (1, 0), (1, 2))
    precision = "a8" if KERNELS[name].precision == "exact" else KERNELS[name].precision
    found = product_by(name, x, matrix, None, geometry, precision)
    assert (found - expected.movedim(1, -1)).norm() <= PRECISIONS[precision] * expected.norm()


def test_random_matrices_repeat_for_a_seed():
    first, second, other = (random_matrix(4, 6, 1, 4, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.codebooks, second.codebooks)
    assert not torch.equal(first.codebooks, other.codebooks)
