"""The second moment of a layer's inputs, whole or block-diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from ..errors import InputError

MAX_BLOCK = 8192  # inputs; a whole H of 23,040 inputs (SDXL's widest convolutions) would take 2.1 GB


def block_edges(shape: tuple[int, ...]) -> list[int]:
    """Column edges of the diagonal blocks of a weight (out, in, *taps): whole channels, as equal as can be, at most MAX_BLOCK columns."""
    channels, taps = shape[1], math.prod(shape[2:])
    n_blocks = math.ceil(channels / max(1, MAX_BLOCK // taps))
    return [taps * (channels * i // n_blocks) for i in range(n_blocks + 1)]


@dataclass(frozen=True)
class BlockDiagonal:
    """Square matrices, one for each group of a grouped convolution, as diagonal blocks (groups, b, b) in column order."""

    blocks: tuple[torch.Tensor, ...]

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

    @cached_property
    def is_diagonal(self) -> bool:
        return all(int(block.count_nonzero()) <= block.shape[0] * block.shape[1] and not block.triu(1).any() for block in self.blocks)

    def of_groups(self, chosen: torch.Tensor) -> BlockDiagonal:
        """Those of some conv groups."""
        return BlockDiagonal(tuple(block[chosen] for block in self.blocks))

    def padded(self, n: int, diagonal: float) -> BlockDiagonal:
        """Columns added at the end until there are n, with nothing but `diagonal` on the diagonal."""
        extra = n - self.n_in
        if extra == 0:
            return self
        last = torch.nn.functional.pad(self.blocks[-1], (0, extra, 0, extra))
        last.diagonal(dim1=1, dim2=2)[:, -extra:] = diagonal
        return BlockDiagonal((*self.blocks[:-1], last))

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[torch.Tensor, int, int, int]]:
        """Blocks that have columns start … stop − 1: the block, its first column, and the overlap's first and last column."""
        first = 0
        for block in self.blocks:
            last = first + block.shape[-1]
            if max(start, first) < min(stop, last):
                yield block, first, max(start, first), min(stop, last)
            first = last

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x (groups, rows, in) → x times the matrix."""
        return self.columns_times(x, 0, self.n_in)

    def columns_times(self, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Columns start … stop − 1 of `times`: (groups, rows, stop − start)."""
        parts = [
            x[:, :, first : first + block.shape[-1]] @ block[:, :, low - first : high - first]
            for block, first, low, high in self._overlaps(start, stop)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def window(self, start: int, stop: int) -> torch.Tensor:
        """Rows and columns start … stop − 1: (groups, stop − start, stop − start)."""
        window = self.blocks[0].new_zeros(self.groups, stop - start, stop - start)
        for block, first, low, high in self._overlaps(start, stop):
            window[:, low - start : high - start, low - start : high - start] = block[
                :, low - first : high - first, low - first : high - first
            ]
        return window

    def diagonal_blocks(self, g: int) -> torch.Tensor:
        """The g×g blocks on the diagonal, (groups, in / g, g, g); of those that straddle two blocks, what both hold."""
        found: list[torch.Tensor] = []
        first = 0
        for block in self.blocks:
            last = first + block.shape[-1]
            if first % g and first // g == sum(blocks.shape[1] for blocks in found):  # begun by the blocks before
                found.append(self.window(first // g * g, first // g * g + g).unsqueeze(1))
            low, high = -(first // -g) * g - first, last // g * g - first
            if low < high:
                inside = block[:, low:high, low:high].unflatten(2, (-1, g)).unflatten(1, (-1, g))
                found.append(inside.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2))
            first = last
        return torch.cat(found, 1)


class Hessian(BlockDiagonal):
    """H = E[x xᵀ] over tokens."""

    @classmethod
    def identity(cls, n_in: int, groups: int = 1) -> Hessian:
        return cls((torch.eye(n_in).expand(groups, -1, -1),))

    @classmethod
    def identity_of(cls, shape: tuple[int, ...], groups: int = 1) -> Hessian:
        """The identity for a weight (out, in, *taps), in the blocks that its calibration would have."""
        edges = block_edges(shape)
        return cls(tuple(torch.eye(stop - start).expand(groups, -1, -1) for start, stop in zip(edges, edges[1:], strict=False)))

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Hessian:
        """A whole H from a matrix (in, in) or (groups, in, in)."""
        return cls((matrix if matrix.ndim == 3 else matrix.unsqueeze(0),))

    @cached_property
    def mean(self) -> float:
        """Of the diagonal."""
        return self.diagonal.mean(dtype=torch.float64).float().item()

    def prepared(self, order: torch.Tensor | None, damping: float) -> Hessian:
        """What an encoder needs: columns reordered (within blocks), in units of the mean of the diagonal, and `damping` added to the diagonal.
        Inputs that are always zero leave the identity.

        Raises InputError unless H is finite and its diagonal not negative.
        """
        if not all(torch.isfinite(block).all() for block in self.blocks) or (self.diagonal < 0).any():
            raise InputError("the calibration matrix is not positive semi-definite (NaN, infinity or a negative diagonal); calibrate again")
        if self.mean == 0:
            return Hessian.identity(self.n_in, self.groups)
        blocks, first = [], 0
        for block in self.blocks:
            width = block.shape[-1]
            if order is not None:
                chosen = (order[first : first + width] - first).to(block.device)
                block = block[:, chosen][:, :, chosen]
            block = block / self.mean
            block.diagonal(dim1=1, dim2=2).add_(damping)
            blocks.append(block)
            first += width
        return Hessian(tuple(blocks))

    def factor(self, damping: float = 0.0, cholesky: Cholesky | None = None) -> BlockDiagonal:
        """C, upper triangular, with H + damping · mean(diagonal) · I = C Cᵀ, so that the error of row e is ‖e C‖² and column j of e C sees
        columns 0 … j of e only.

        Where rounding made H indefinite, more is added as needed, up to a hundredth of the mean.

        Args:
            cholesky: another way to `upper_cholesky`.

        Raises InputError for what is further from positive semi-definite.
        """
        return BlockDiagonal(tuple(_upper_factor(block, damping, cholesky or upper_cholesky) for block in self.blocks))


Cholesky = Callable[[torch.Tensor], torch.Tensor | None]


def upper_cholesky(matrices: torch.Tensor) -> torch.Tensor | None:
    """C, upper triangular, of each matrix C Cᵀ (…, n, n); None where one is not positive definite. The argument may be overwritten."""
    factor, info = torch.linalg.cholesky_ex(matrices.flip(-2, -1))
    return None if info.any() else factor.flip(-2, -1)


def _upper_factor(block: torch.Tensor, damping: float, cholesky: Cholesky) -> torch.Tensor:
    if block.stride(0) == 0 and len(block) > 1:  # one for all conv groups
        return _upper_factor(block[:1], damping, cholesky).expand_as(block)
    mean = block.diagonal(dim1=1, dim2=2).mean(dtype=torch.float64).item()
    for extra in (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        matrices = block.clone(memory_format=torch.contiguous_format)
        matrices.diagonal(dim1=1, dim2=2).add_((damping + extra) * mean)
        factor = cholesky(matrices)
        if factor is not None:
            return factor
    raise InputError("the calibration matrix is not positive semi-definite (it has a negative eigenvalue); calibrate again")
