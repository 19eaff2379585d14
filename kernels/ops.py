"""The product as an operation of torch's own: torch.compile takes it whole, and its gradients are those of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import dispatch
from .quantized_matrix import Geometry, QuantizedMatrix
from .reference import product_by_dequantizing


def product(
    x: torch.Tensor,
    matrix: QuantizedMatrix,
    bias: torch.Tensor | None = None,
    geometry: Geometry | None = None,
    precision: str = "exact",
) -> torch.Tensor:
    """As `dispatch.product`, and differentiable by x, codebooks, scales and bias, whichever kernel computes it.

    The gradient is the exact one, also where activations are rounded to 8 bits (straight through).
    """
    learned = (x, matrix.codebooks, matrix.scales, bias)
    wanted = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in learned)
    if not wanted and not torch.compiler.is_compiling():  # an operation costs some 20 microseconds
        return dispatch.product(x, matrix, bias, geometry, precision)
    found: torch.Tensor = torch.ops.sedaq.product(
        x,
        matrix.codes,
        matrix.codebooks,
        matrix.scales,
        matrix.order,
        bias,
        matrix.n_in,
        matrix.structure,
        matrix.taps,
        matrix.cost_model,
        _numbers(geometry),
        precision,
    )
    return found


def _numbers(geometry: Geometry | None) -> list[int]:
    return [] if geometry is None else [*geometry.kernel, *geometry.step, *geometry.padding, *geometry.dilation]


def _geometry(numbers: Sequence[int]) -> Geometry | None:
    n = len(numbers) // 4
    return Geometry(*(tuple(numbers[i * n : (i + 1) * n]) for i in range(4))) if n else None


def _forward(
    x: torch.Tensor,
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor | None,
    bias: torch.Tensor | None,
    n_in: int,
    structure: str,
    taps: int,
    cost_model: str,
    geometry: Sequence[int],
    precision: str,
) -> torch.Tensor:
    matrix = QuantizedMatrix(codes, codebooks, scales, n_in, order, structure, taps, cost_model)
    return dispatch.product(x, matrix, bias, _geometry(geometry), precision).contiguous()


def _fake(
    x: Any,
    codes: Any,
    codebooks: Any,
    scales: Any,
    order: Any,
    bias: Any,
    n_in: Any,
    structure: Any,
    taps: Any,
    cost_model: Any,
    geometry: Any,
    precision: Any,
) -> Any:
    cut = _geometry(geometry)
    positions = x.shape[:-1] if cut is None else (x.shape[0], *cut.out_size(x.shape[1:-1]))
    return x.new_empty(*positions, codes.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, codes, codebooks, scales, order, bias, n_in, structure, taps, _, geometry, _ = inputs
    ctx.save_for_backward(x, codes, codebooks, scales, order, bias)
    ctx.constants = (n_in, structure, taps, geometry)


def _gradients(ctx: Any, of_y: torch.Tensor) -> tuple[Any, ...]:
    x, codes, codebooks, scales, order, bias = ctx.saved_tensors
    n_in, structure, taps, geometry = ctx.constants
    leaves = dict(zip(("x", "books", "scales", "bias"), (x, codebooks, scales, bias), strict=True))
    wanted = [name for name, index in zip(leaves, (0, 2, 3, 5), strict=True) if ctx.needs_input_grad[index]]
    with torch.enable_grad():
        leaves |= {name: leaves[name].detach().requires_grad_() for name in wanted}
        matrix = QuantizedMatrix(codes, leaves["books"], leaves["scales"], n_in, order, structure, taps)
        y = product_by_dequantizing(leaves["x"], matrix, leaves["bias"], _geometry(geometry))
        found = dict(zip(wanted, torch.autograd.grad(y, [leaves[name] for name in wanted], of_y), strict=True))
    return found.get("x"), None, found.get("books"), found.get("scales"), None, found.get("bias"), *[None] * 6


# Only once in a process: a second import under another name, as test tools make of a package's root, would pull it from under the first.
if not hasattr(torch.ops.sedaq, "product"):
    _definition = torch.library.custom_op("sedaq::product", _forward, mutates_args=())
    _definition.register_fake(_fake)
    _definition.register_autograd(_gradients, setup_context=_keep)
