"""The reference products against a triple loop, and their gradients against finite differences."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sedaq.kernels.quantized_matrix import QuantizedMatrix
from sedaq.kernels.reference import dequantize, product_by_dequantizing, product_by_lookup

PRODUCTS = (product_by_lookup, product_by_dequantizing)


def random_matrix(
    n_out: int, n_in: int, m: int, k: int, g: int, *, ordered: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64
) -> QuantizedMatrix:
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(k, (n_out, -(-n_in // g), m), generator=rng)
    books = torch.randn(m, k, g, generator=rng, dtype=dtype)
    scales = torch.randn(n_out, generator=rng, dtype=dtype)
    return QuantizedMatrix(codes, books, scales, n_in, torch.randperm(n_in, generator=rng) if ordered else None)


def by_loops(matrix: QuantizedMatrix) -> torch.Tensor:
    """Entry by entry, as the definition of QuantizedMatrix says it."""
    n_out, _, m = matrix.codes.shape
    g = matrix.codebooks.shape[2]
    dense = torch.zeros(n_out, matrix.n_in, dtype=matrix.codebooks.dtype)
    for row in range(n_out):
        for column in range(matrix.n_in):
            value = sum(matrix.codebooks[i, matrix.codes[row, column // g, i], column % g] for i in range(m))
            place = column if matrix.order is None else matrix.order[column]
            dense[row, place] = matrix.scales[row] * value
    return dense


@settings(max_examples=25, deadline=None)
@given(
    n_out=st.integers(1, 5),
    n_in=st.integers(1, 11),
    m=st.integers(1, 3),
    k=st.sampled_from([2, 4]),
    g=st.integers(1, 5),
    tokens=st.integers(0, 3),
    ordered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_equal_the_triple_loop(n_out, n_in, m, k, g, tokens, ordered, seed):
    matrix = random_matrix(n_out, n_in, m, k, g, ordered=ordered, seed=seed)
    dense = by_loops(matrix)
    torch.testing.assert_close(dequantize(matrix), dense)
    x = torch.randn(tokens, n_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros(tokens, n_out, dtype=torch.float64)
    for t in range(tokens):
        for row in range(n_out):
            for column in range(n_in):
                expected[t, row] += x[t, column] * dense[row, column]
    for product in PRODUCTS:
        torch.testing.assert_close(product(x, matrix), expected)


def test_padded_columns_of_the_codebooks_do_not_matter():
    matrix = random_matrix(3, 5, 1, 16, 4)
    spoilt = matrix.codebooks.clone()
    last_codes = matrix.codes[:, 1, 0].unique()
    only_last = [code for code in last_codes.tolist() if code not in matrix.codes[:, 0, 0].tolist()]
    spoilt[0, only_last, 1:] = 1e6
    assert only_last, "no codeword is used by the padded group alone; choose another seed"
    other = dataclasses.replace(matrix, codebooks=spoilt)
    x = torch.randn(2, 5, dtype=torch.float64)
    for product in PRODUCTS:
        assert torch.equal(product(x, other), product(x, matrix))


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("ordered", [False, True])
def test_gradients_reach_inputs_codebooks_and_scales(product, ordered):
    matrix = random_matrix(3, 5, 2, 3, 2, ordered=ordered)

    def function(x: torch.Tensor, books: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return product(x, dataclasses.replace(matrix, codebooks=books, scales=scales))

    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(function, tuple(t.clone().requires_grad_() for t in (x, matrix.codebooks, matrix.scales)))


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_output_has_the_dtype_of_the_input(product):
    matrix = random_matrix(6, 16, 2, 4, 4, dtype=torch.float32)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    y = product(x.bfloat16(), matrix)
    assert y.dtype == torch.bfloat16
    assert (y.float() - product(x, matrix)).norm() < 0.03 * product(x, matrix).norm()
