"""A part of a weight while it is encoded: some rows, what weighs their errors, and their codes and scales so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..models.hessian import BlockDiagonal
from .beam import sum_of
from .formats import Format


@dataclass
class Part:
    """Rows that are worked on together; rows, conv groups or layers that share codebooks are lists of parts.

    S conv groups, R rows of each, n coded columns, G = n / g. hessian and factor are shared among the parts of a weight.
    """

    w: torch.Tensor  # (S, R, n)
    hessian: BlockDiagonal
    factor: BlockDiagonal
    scales: torch.Tensor = field(init=False)  # (S, R, 1)
    codes: torch.Tensor = field(init=False)  # (S, R, G, M); none before they are chosen the first time

    def __post_init__(self) -> None:
        self.scales = self.root_mean_square  # zero rows keep scale zero and are exact
        self.codes = torch.empty(0)

    @property
    def has_codes(self) -> bool:
        return self.codes.numel() > 0

    @cached_property
    def root_mean_square(self) -> torch.Tensor:
        """Of each row, (S, R, 1)."""
        return self.w.square().mean(2, keepdim=True).sqrt()

    @cached_property
    def wh(self) -> torch.Tensor:
        """w H"""
        return self.hessian.times(self.w)

    def error(self, books: torch.Tensor) -> float:
        """tr((Ŵ − W) H (Ŵ − W)ᵀ)"""
        difference = sum_of(books, self.codes) * self.scales - self.w
        return (self.hessian.times(difference) * difference).sum(dtype=torch.float64).item()

    def update_scales(self, books: torch.Tensor) -> None:
        """scale = (w H uᵀ) / (u H uᵀ) for each row, u its unscaled codewords."""
        u = sum_of(books, self.codes)
        energy = (self.hessian.times(u) * u).sum(2, keepdim=True)
        exact = (self.wh * u).sum(2, keepdim=True) / torch.where(energy > 0, energy, 1.0)
        self.scales = torch.where((energy > 0) & (self.scales != 0), exact, self.scales)


def sum_by_code(part: Part, values: torch.Tensor, format: Format) -> torch.Tensor:
    """Sum (S, R, n) over the places of each codeword: (M, K, g)."""
    groups = values.reshape(-1, format.group_size)
    codes = part.codes.reshape(-1, format.n_codebooks)
    books = groups.new_zeros(format.n_codebooks, format.n_entries, format.group_size)
    for m in range(format.n_codebooks):
        books[m].index_add_(0, codes[:, m], groups)
    return books


def total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum, in order."""
    result = tensors[0].clone()
    for tensor in tensors[1:]:
        result += tensor
    return result
