"""The product as an operation: gradients against finite differences, the fake kernel, torch's own checks of an operation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sedaq.kernels import native
from sedaq.kernels.dispatch import PRECISIONS
from sedaq.kernels.ops import _numbers, product
from sedaq.kernels.quantized_matrix import Geometry, QuantizedMatrix
from sedaq.kernels.reference import product_by_dequantizing

CONVOLUTION = Geometry((3, 2), (2, 1), (1, 0), (1, 2))


def random_matrix(dtype: torch.dtype, geometry: Geometry | None) -> QuantizedMatrix:
    rng = torch.Generator().manual_seed(0)
    taps = 1 if geometry is None else 6
    n_in = 4 * taps
    codes = torch.randint(4, (5, -(-n_in // 3), 2), generator=rng).to(torch.uint8)
    books, scales = torch.randn(2, 4, 3, generator=rng, dtype=dtype), torch.randn(5, generator=rng, dtype=dtype)
    return QuantizedMatrix(codes, books, scales, n_in, torch.randperm(n_in, generator=rng), taps=taps)


def inputs(dtype: torch.dtype, geometry: Geometry | None) -> torch.Tensor:
    shape = (2, 3, 4) if geometry is None else (2, 5, 6, 4)
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("geometry", [None, CONVOLUTION])
def test_gradients_equal_finite_differences(geometry):
    matrix, x, bias = random_matrix(torch.float64, geometry), inputs(torch.float64, geometry), torch.randn(5, dtype=torch.float64)

    def function(x, books, scales, bias):
        return product(x, dataclasses.replace(matrix, codebooks=books, scales=scales), bias, geometry)

    leaves = [part.clone().requires_grad_() for part in (x, matrix.codebooks, matrix.scales, bias)]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("geometry", [None, CONVOLUTION])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_of_any_kernel_are_the_references(geometry, precision):
    matrix, bias = random_matrix(torch.float32, geometry), torch.randn(5)
    found, wanted = (inputs(torch.float32, geometry).requires_grad_() for _ in range(2))
    y = product(found, matrix, bias, geometry, precision)
    reference = product_by_dequantizing(wanted, matrix, bias, geometry)
    assert (y - reference).norm() <= PRECISIONS[precision] * reference.norm()
    weights = torch.randn(y.shape)
    (y * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad)


def test_only_what_wants_a_gradient_gets_one():
    matrix, x = random_matrix(torch.float32, None), inputs(torch.float32, None)
    assert not product(x, matrix).requires_grad
    books = matrix.codebooks.clone().requires_grad_()
    product(x, dataclasses.replace(matrix, codebooks=books)).sum().backward()
    assert books.grad is not None and x.grad is None
    with torch.no_grad():
        assert not product(x.clone().requires_grad_(), matrix).requires_grad


@pytest.mark.parametrize("geometry", [None, CONVOLUTION])
def test_torchs_own_checks(geometry):
    """Schema, fake kernel, autograd registration and ahead-of-time tracing."""
    matrix, x = random_matrix(torch.float32, geometry), inputs(torch.float32, geometry)
    arguments = (matrix.codes, matrix.codebooks, matrix.scales, matrix.order, torch.randn(5), matrix.n_in, "", matrix.taps, "")
    for leaf in (x, x.clone().requires_grad_()):
        torch.library.opcheck(torch.ops.sedaq.product, (leaf, *arguments, _numbers(geometry), "exact"))


@pytest.mark.skipif(native.library() is None, reason="the C++ kernels were not built")
def test_inference_mode():
    matrix, x = random_matrix(torch.float32, None), inputs(torch.float32, None)
    with torch.inference_mode():
        own = dataclasses.replace(matrix, codebooks=matrix.codebooks * 2)
        torch.testing.assert_close(product(x * 1, own), product_by_dequantizing(x, own), atol=1e-4, rtol=1e-4)
