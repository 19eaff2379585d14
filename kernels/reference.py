"""The definition of correct: what every other kernel is compared with. Plain torch, differentiable in inputs, codebooks, scales and bias.

Products take x and return what `dispatch.product` describes.
"""

from __future__ import annotations

import torch

from .quantized_matrix import Geometry, QuantizedMatrix

_CONVOLUTIONS = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)


def dequantize(matrix: QuantizedMatrix) -> torch.Tensor:
    """The dense matrix (out, in)."""
    n_out, n_groups, n_codebooks = matrix.codes.shape
    _, n_entries, group_size = matrix.codebooks.shape
    flat = matrix.codes.long() + torch.arange(n_codebooks, device=matrix.codes.device) * n_entries
    words = torch.nn.functional.embedding(flat, matrix.codebooks.reshape(-1, group_size)).sum(2)
    dense = (words.reshape(n_out, n_groups * group_size) * matrix.scales.unsqueeze(1))[:, : matrix.n_in]
    if matrix.order is None:
        return dense
    return dense[:, torch.argsort(matrix.order)]


def product_by_lookup(
    x: torch.Tensor, matrix: QuantizedMatrix, bias: torch.Tensor | None = None, geometry: Geometry | None = None
) -> torch.Tensor:
    """Without ever forming the matrix: one table of <group of x, codeword> for each group, one lookup for each code."""
    columns = x if geometry is None else geometry.columns(x)
    n_groups, group_size = matrix.codes.shape[1], matrix.codebooks.shape[2]
    flat = columns.reshape(-1, matrix.n_in)
    if matrix.order is not None:
        flat = flat[:, matrix.order]
    flat = torch.nn.functional.pad(flat, (0, n_groups * group_size - matrix.n_in)).reshape(len(flat), n_groups, group_size)
    y = x.new_zeros(len(flat), matrix.n_out)
    for j in range(n_groups):
        for m, codebook in enumerate(matrix.codebooks):
            table = flat[:, j] @ codebook.T.to(x.dtype)
            y = y + table[:, matrix.codes[:, j, m].long()]
    y = (y * matrix.scales.to(x.dtype)).reshape(*columns.shape[:-1], matrix.n_out)
    return y if bias is None else y + bias.to(x.dtype)


def product_by_dequantizing(
    x: torch.Tensor, matrix: QuantizedMatrix, bias: torch.Tensor | None = None, geometry: Geometry | None = None
) -> torch.Tensor:
    """Through the dense matrix and torch's product or convolution."""
    dense, bias = dequantize(matrix).to(x.dtype), None if bias is None else bias.to(x.dtype)
    if geometry is None:
        return torch.nn.functional.linear(x, dense, bias)
    weight = dense.reshape(matrix.n_out, -1, *geometry.kernel)
    convolve = _CONVOLUTIONS[len(geometry.kernel) - 1]
    return convolve(x.movedim(-1, 1), weight, bias, geometry.step, geometry.padding, geometry.dilation).movedim(1, -1)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x (..., in) with every token rounded to 8 bits, scaled by its greatest magnitude."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / torch.where(scale > 0, scale, 1.0)).round() * scale
