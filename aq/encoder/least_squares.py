"""Codebooks in closed form: least squares under the full Hessian, where AQLM takes 100 Adam steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..formats import Format
from .part import Part, total


def fit_codebooks(parts: Sequence[Part], stored: torch.Tensor, format: Format, iterations: int = 12) -> torch.Tensor:
    """Stored vectors (M, stored, g) of least error for the codes and scales of `parts`, by conjugate gradients from `stored`.

    Mirrored and hierarchical codebooks are linear in their stored vectors, so one solver serves all structures. Preconditioned by what each
    vector would cost alone, a g×g block; a millionth of its mean is added as a ridge, which leaves unused vectors where they are.
    """
    expansion = format.expansion
    adjoint = expansion.T.double()
    size = (format.n_codebooks, format.n_entries, format.group_size)

    carried = total([part.carried_by_code(size) for part in parts]).double()
    blocks = (adjoint.square() @ carried.flatten(2)).unflatten(2, carried.shape[2:])
    diagonal = blocks.diagonal(dim1=2, dim2=3)
    ridge = 1e-6 * diagonal.mean()
    floor = (ridge + 1e-6 * diagonal.mean(2, keepdim=True)).clamp(min=1e-30)
    inverse = torch.linalg.inv(blocks + torch.diag_embed(floor.expand_as(diagonal)))

    def precondition(x: torch.Tensor) -> torch.Tensor:
        return (inverse @ x.unsqueeze(3)).squeeze(3)

    def normal(x: torch.Tensor) -> torch.Tensor:
        sums = [part.sums_by_code(size, expansion @ x.float()) for part in parts]
        return adjoint @ total(sums).double() + ridge * x

    x = stored.double()
    right = adjoint @ total([part.sums_by_code(size) for part in parts]).double()
    residual = right + ridge * x - normal(x)
    z = precondition(residual)
    direction, rz = z, (residual * z).sum()
    first = rz
    for _ in range(iterations):
        if not rz > 1e-6 * first:
            break
        along = normal(direction)
        step = rz / (direction * along).sum().clamp(min=1e-300)
        x = x + step * direction
        residual = residual - step * along
        z = precondition(residual)
        rz, previous = (residual * z).sum(), rz
        direction = z + (rz / previous) * direction
    return x.float()
