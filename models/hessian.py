"""The second moment of a layer's inputs, whole or block-diagonal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import InputError

MAX_BLOCK = 8192  # inputs; a whole H of 23,040 inputs (SDXL's widest convolutions) would take 2.1 GB


def block_edges(shape: tuple[int, ...]) -> list[int]:
    """Column edges of the diagonal blocks of a weight (out, in, *taps): whole channels, as equal as can be, at most MAX_BLOCK columns."""
    channels, taps = shape[1], math.prod(shape[2:])
    n_blocks = math.ceil(channels / max(1, MAX_BLOCK // taps))
    return [taps * (channels * i // n_blocks) for i in range(n_blocks + 1)]


@dataclass(frozen=True)
class Hessian:
    """H = E[x xᵀ] over tokens, one for each group of a grouped convolution, as diagonal blocks (groups, b, b) in column order."""

    blocks: tuple[torch.Tensor, ...]

    @classmethod
    def identity(cls, n_in: int, groups: int = 1) -> Hessian:
        return cls((torch.eye(n_in).expand(groups, -1, -1),))

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Hessian:
        """A whole H from a matrix (in, in) or (groups, in, in)."""
        return cls((matrix if matrix.ndim == 3 else matrix.unsqueeze(0),))

    @property
    def n_in(self) -> int:
        return sum(block.shape[-1] for block in self.blocks)

    @property
    def groups(self) -> int:
        return self.blocks[0].shape[0]

    @property
    def diagonal(self) -> torch.Tensor:
        """(groups, in)"""
        return torch.cat([block.diagonal(dim1=1, dim2=2) for block in self.blocks], 1)

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x (groups, rows, in) → x H."""
        if len(self.blocks) == 1:
            return x @ self.blocks[0]
        parts = x.split([block.shape[-1] for block in self.blocks], dim=2)
        return torch.cat([part @ block for part, block in zip(parts, self.blocks, strict=True)], 2)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start … stop − 1 of H: (groups, stop − start, in)."""
        if len(self.blocks) == 1:
            return self.blocks[0][:, start:stop]
        rows = self.blocks[0].new_zeros(self.groups, stop - start, self.n_in)
        first = 0
        for block in self.blocks:
            last = first + block.shape[-1]
            low, high = max(start, first), min(stop, last)
            if low < high:
                rows[:, low - start : high - start, first:last] = block[:, low - first : high - first]
            first = last
        return rows

    def prepared(self, order: torch.Tensor | None, n_padded: int, damping: float) -> Hessian:
        """Columns reordered (within blocks), padded with zeros to `n_padded`, and damped by `damping` times the mean of the diagonal.

        Raises InputError unless H is finite and its diagonal not negative.
        """
        blocks, first = [], 0
        for i, block in enumerate(self.blocks):
            width = block.shape[-1]
            diagonal = block.diagonal(dim1=1, dim2=2)
            if not torch.isfinite(block).all() or (diagonal < 0).any():
                raise InputError(
                    "the calibration matrix is not positive semi-definite (NaN, infinity or a negative diagonal); calibrate again"
                )
            if order is not None:
                chosen = order[first : first + width] - first
                block = block[:, chosen][:, :, chosen]
            ridge = damping * diagonal.mean(1).clamp(min=torch.finfo(torch.float32).tiny)
            block = block + torch.diag_embed(ridge.unsqueeze(1).expand(-1, width))
            pad = n_padded - self.n_in if i == len(self.blocks) - 1 else 0
            blocks.append(torch.nn.functional.pad(block, (0, pad, 0, pad)))
            first += width
        return Hessian(tuple(blocks))
