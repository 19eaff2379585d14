"""The definition of correct: what every other kernel is compared with. Plain torch, differentiable in codebooks and scales."""

from __future__ import annotations

import torch

from .coded import CodedMatrix


def dequantize(matrix: CodedMatrix) -> torch.Tensor:
    """The dense matrix (out, in)."""
    n_out, n_groups, n_codebooks = matrix.codes.shape
    _, n_entries, group_size = matrix.codebooks.shape
    flat = matrix.codes + torch.arange(n_codebooks, device=matrix.codes.device) * n_entries
    words = torch.nn.functional.embedding(flat, matrix.codebooks.reshape(-1, group_size)).sum(2)
    dense = (words.reshape(n_out, n_groups * group_size) * matrix.scales.unsqueeze(1))[:, : matrix.n_in]
    if matrix.order is None:
        return dense
    return dense[:, torch.argsort(matrix.order)]


def product_by_lookup(x: torch.Tensor, matrix: CodedMatrix) -> torch.Tensor:
    """x (T, in) → (T, out) without ever forming the matrix: one table of <group of x, codeword> per group, one lookup per code."""
    n_groups, group_size = matrix.codes.shape[1], matrix.codebooks.shape[2]
    if matrix.order is not None:
        x = x[:, matrix.order]
    x = torch.nn.functional.pad(x, (0, n_groups * group_size - matrix.n_in)).reshape(len(x), n_groups, group_size)
    y = x.new_zeros(len(x), matrix.n_out)
    for j in range(n_groups):
        for m, codebook in enumerate(matrix.codebooks):
            table = x[:, j] @ codebook.T.to(x.dtype)
            y = y + table[:, matrix.codes[:, j, m]]
    return y * matrix.scales.to(x.dtype)


def product_by_dequantizing(x: torch.Tensor, matrix: CodedMatrix) -> torch.Tensor:
    """x (T, in) → (T, out) through the dense matrix and torch's product."""
    return x @ dequantize(matrix).to(x.dtype).T
