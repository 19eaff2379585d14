"""A part of a weight while it is encoded: some rows, what weighs their errors, and their codes and scales so far.

What is done with every row runs in C++ where that was built (native.py), or else in torch, which says what is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ...models.hessian import BlockDiagonal
from . import beam, native
from .beam import Beam, sum_of


@dataclass
class Part:
    """Rows that are worked on together; rows, conv groups or layers that share codebooks are lists of parts.

    S conv groups, R rows of each, n coded columns, G = n / g. hessian and factor are shared among the parts of a weight.
    """

    w: torch.Tensor  # (S, R, n)
    hessian: BlockDiagonal
    factor: BlockDiagonal
    weighted: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # w H, (S, R, n); made where it is not given
    scales: torch.Tensor = field(init=False)  # (S, R, 1)
    codes: torch.Tensor = field(init=False)  # (S, R, G, M); none before they are chosen the first time

    def __post_init__(self) -> None:
        self.scales = self.root_mean_square  # zero rows keep scale zero and are exact
        self.codes = torch.empty(0)
        if not self.weighted.numel():
            self.weighted = multiply(self.w, self.hessian)

    @property
    def has_codes(self) -> bool:
        """Whether codes were chosen."""
        return self.codes.numel() > 0

    @cached_property
    def root_mean_square(self) -> torch.Tensor:
        """Of each row, (S, R, 1)."""
        return self.w.square().mean(2, keepdim=True, dtype=torch.float64).sqrt().float()

    @cached_property
    def signal(self) -> float:
        """tr(W H Wᵀ)"""
        return (self.w * self.weighted).sum(dtype=torch.float64).item()

    def encode(self, books: torch.Tensor, kept: Beam) -> None:
        """Choose codes from nothing, with error feedback."""
        if native.library():
            self.codes = native.encode(self.w, self.scales, self.factor, books, kept)
        else:
            self.codes, _ = beam.encode(self.w, self.scales, self.factor, books, kept)

    def improve(self, books: torch.Tensor, kept: Beam) -> None:
        """Choose every group's codes anew, given all others; a diagonal H leaves nothing to be changed."""
        if self.hessian.is_diagonal:
            return
        if native.library():
            self.codes = native.improve(self.w, self.scales, self.hessian, books, self.codes, kept.within)
        else:
            self.codes, _ = beam.improve(self.w, self.scales, self.hessian, books, self.codes, kept.within)

    def forms(self, books: torch.Tensor) -> torch.Tensor:
        """u H uᵀ and w H uᵀ of each row, u its unscaled codewords: (S, R, 2), double."""
        if native.library():
            return native.forms(self.w, self.scales, self.weighted, self.hessian, books, self.codes)
        u = sum_of(books, self.codes)
        return torch.stack([(u * other).sum(2, dtype=torch.float64) for other in (self.hessian.times(u), self.weighted)], 2)

    def error(self, books: torch.Tensor) -> float:
        """tr((Ŵ − W) H (Ŵ − W)ᵀ)"""
        energy, cross = self.forms(books).unbind(2)
        scales = self.scales.squeeze(2).double()
        return self.signal + (scales * (scales * energy - 2 * cross)).sum().item()

    def update_scales(self, books: torch.Tensor) -> float:
        """scale = (w H uᵀ) / (u H uᵀ) for each row, u its unscaled codewords. Returns the error then."""
        energy, cross = self.forms(books).unbind(2)
        known = (energy > 0) & (self.scales.squeeze(2) != 0)
        exact = torch.where(known, cross / torch.where(energy > 0, energy, 1.0), self.scales.squeeze(2).double())
        self.scales = exact.float().unsqueeze(2)
        return self.signal + (exact * (exact * energy - 2 * cross)).sum().item()

    def sums_by_code(self, size: tuple[int, int, int], books: torch.Tensor | None = None) -> torch.Tensor:
        """Σ scale · (x H) over the positions of each codeword, x the scaled codewords of `books` or else the weights: (M, K, g) = size."""
        if native.library():
            return native.sums_by_code(self.w, self.scales, self.weighted, self.hessian, self.codes, size, books)
        product = self.weighted if books is None else self.hessian.times(sum_of(books, self.codes) * self.scales)
        return sum_by_code(self, product * self.scales, size)

    def carried_by_code(self, size: tuple[int, int, int]) -> torch.Tensor:
        """Σ scale² · H's diagonal block over the positions of each codeword: (M, K, g, g)."""
        if native.library():
            return native.carried_by_code(self.w, self.scales, self.hessian, self.codes, size)
        n_codebooks, n_entries, g = size
        blocks = self.hessian.diagonal_blocks(g).flatten(2)  # (S, G, g · g)
        mass = blocks.new_zeros(*blocks.shape[:2], n_codebooks * n_entries)
        codes = (self.codes + n_entries * torch.arange(n_codebooks)).transpose(1, 2).flatten(2)  # (S, G, R · M)
        squares = self.scales.square().unsqueeze(1).expand(-1, codes.shape[1], -1, n_codebooks).flatten(2)
        mass.scatter_add_(2, codes, squares)
        return (mass.flatten(0, 1).T @ blocks.flatten(0, 1)).view(*size, g)


def multiply(x: torch.Tensor, hessian: BlockDiagonal) -> torch.Tensor:
    """x H of rows (S, R, n)."""
    return native.products(x, hessian) if native.library() else hessian.times(x)


def squared_norm(x: torch.Tensor, hessian: BlockDiagonal) -> float:
    """tr(x H xᵀ) of rows (S, R, n)."""
    if native.library():
        return native.signals(x, hessian).sum().item()
    return (hessian.times(x) * x).sum(dtype=torch.float64).item()


def sum_by_code(part: Part, values: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Sum (S, R, n) over the positions of each codeword: (M, K, g) = size."""
    groups = values.reshape(-1, size[2])
    codes = part.codes.reshape(-1, size[0])
    books = groups.new_zeros(size)
    for m in range(size[0]):
        books[m].index_add_(0, codes[:, m], groups)
    return books


def total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum, in order."""
    result = tensors[0].clone()
    for tensor in tensors[1:]:
        result += tensor
    return result
