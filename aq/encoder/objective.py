"""What an encoding minimises: the error of a weight under the Hessian of its inputs.

All that does not depend on the format is made once here, for several formats are tried on one weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ...errors import InputError
from ...models.hessian import BlockDiagonal, Hessian
from ..encoding import column_order
from ..formats import Format
from . import native
from .part import Part, multiply, squared_norm

# Shares of H's mean diagonal that are added to it (docs/experiments/calibration.md).
DAMPING = 1e-3  # for all, so that inputs that are always zero still pull their weights towards the truth
FEEDBACK_DAMPING = 0.01  # for error feedback


@dataclass(frozen=True, eq=False)
class Objective:
    """tr((Ŵ − W) H (Ŵ − W)ᵀ) of one weight; S conv groups of R rows each."""

    shape: tuple[int, ...]  # (out, in / groups, *taps)
    matrix: torch.Tensor  # (S, R, n_in), float32
    hessian: Hessian  # one matrix for each conv group, float32
    _prepared: dict[bool, tuple[Hessian, BlockDiagonal]] = field(default_factory=dict)

    @classmethod
    def of(cls, weight: torch.Tensor, hessian: Hessian | torch.Tensor | None = None, groups: int = 1) -> Objective:
        """The objective of a weight (out, in / groups, *taps).

        Args:
            hessian: second moment of the inputs, a matrix (in, in) in the order of weight.flatten(1), or one per conv group; identity if None.

        Raises InputError for NaN or infinity, and a Hessian of another size.
        """
        if not _is_finite(weight):
            raise InputError(f"a weight of shape {tuple(weight.shape)} holds NaN or infinity; repair the model")
        # The codes are chosen by the processor's cores, wherever the model is.
        matrix = weight.detach().cpu().float().reshape(groups, -1, math.prod(weight.shape[1:]))
        return cls(tuple(weight.shape), matrix, _checked_hessian(hessian, matrix.shape[2], groups))

    def of_rows(self, chosen: torch.Tensor) -> Objective:
        """That of some rows of a weight without conv groups."""
        part = Objective((len(chosen), *self.shape[1:]), self.matrix[:, chosen], self.hessian, self._prepared)
        part.__dict__["weighted"] = self.weighted[:, chosen]
        return part

    def scaled(self, factor: float) -> Objective:
        """That of the weight times `factor`."""
        scaled = Objective(self.shape, self.matrix * factor, self.hessian, self._prepared)
        scaled.__dict__["weighted"] = self.weighted * factor
        return scaled

    @cached_property
    def weighted(self) -> torch.Tensor:
        """W H, (S, R, n_in)"""
        return multiply(self.matrix, self.hessian)

    @cached_property
    def signal(self) -> float:
        """tr(W H Wᵀ)"""
        return (self.weighted * self.matrix).sum(dtype=torch.float64).item()

    def relative_error(self, approximation: torch.Tensor) -> float:
        """‖(W − Ŵ)X‖² / ‖WX‖² under H; 0 for a weight or inputs that are zero anyway."""
        noise = squared_norm(self.matrix - approximation.to(self.matrix).reshape_as(self.matrix), self.hessian)
        return max(noise, 0.0) / self.signal if self.signal > 0 else 0.0

    def parts(self, format: Format, wanted: float, rng: torch.Generator) -> tuple[list[Part], torch.Tensor]:
        """The weight's rows in random order, and which row of the weight each is.

        The first part has about as many weights as are `wanted` for codebooks to be fitted on; a second has the others, if there are any.
        Columns are in the format's order and padded to whole groups.
        """
        order = column_order(format, self.shape)
        hessian, factor = self._prepare(order)
        width = format.n_groups(self.shape) * format.group_size
        mean, padded = self.hessian.mean, hessian.padded(width, DAMPING)
        factor = factor.padded(width, math.sqrt(DAMPING + FEEDBACK_DAMPING))
        w, weighted = (_in_order(x, order, width) for x in (self.matrix, self.weighted))
        weighted = weighted / mean + DAMPING * w if mean > 0 else w
        n_groups, n_rows = w.shape[:2]
        n_units = n_rows if n_groups == 1 else n_groups
        shuffled = torch.randperm(n_units, generator=rng)
        n_first = math.ceil(n_units * wanted / max(1, w.numel()))
        pieces = [shuffled] if n_first > 0.8 * n_units else list(shuffled.split([n_first, n_units - n_first]))
        if n_groups == 1:
            return [Part(w[:, piece], padded, factor, weighted[:, piece]) for piece in pieces], shuffled
        rows = torch.arange(n_groups * n_rows).view(n_groups, n_rows)
        parts = [Part(w[piece], padded.of_groups(piece), factor.of_groups(piece), weighted[piece]) for piece in pieces]
        return parts, rows[shuffled].reshape(-1)

    def _prepare(self, order: torch.Tensor | None) -> tuple[Hessian, BlockDiagonal]:
        """H as the encoder needs it, and its triangular factor; a weight has one order of columns besides its own."""
        reordered = order is not None
        if reordered not in self._prepared:
            prepared = self.hessian.prepared(order, DAMPING)
            factor = prepared.factor(FEEDBACK_DAMPING, native.upper_cholesky if native.library() else None)
            self._prepared[reordered] = prepared, factor
        return self._prepared[reordered]


def _in_order(x: torch.Tensor, order: torch.Tensor | None, width: int) -> torch.Tensor:
    x = x if order is None else x[:, :, order]
    return torch.nn.functional.pad(x, (0, width - x.shape[2]))


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.sum(dtype=torch.float64).isfinite())  # several times as fast as asking every number


def _checked_hessian(hessian: Hessian | torch.Tensor | None, n_in: int, groups: int) -> Hessian:
    """As float32 blocks. Raises InputError for another size, NaN or infinity."""
    if hessian is None:
        hessian = Hessian.identity(n_in, groups)
    if isinstance(hessian, torch.Tensor):
        if hessian.ndim not in (2, 3) or hessian.shape[-1] != hessian.shape[-2]:
            raise InputError(f"a Hessian of shape {tuple(hessian.shape)} is not (in, in), nor (groups, in, in); calibrate again")
        hessian = Hessian.of(hessian)
    if hessian.n_in != n_in or hessian.groups not in (1, groups):
        raise InputError(
            f"a Hessian of {hessian.groups} groups and {hessian.n_in} inputs cannot weigh a weight of {groups} groups and {n_in} inputs; calibrate again"
        )
    if not all(_is_finite(block) for block in hessian.blocks):
        raise InputError("the Hessian holds NaN or infinity; calibrate again")
    return Hessian(tuple(block.to("cpu", torch.float32).expand(groups, -1, -1) for block in hessian.blocks))
