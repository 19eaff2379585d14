"""Codebooks in closed form: least squares under the full Hessian, where AQLM takes 100 Adam steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .beam import sum_of
from .formats import Format
from .parallel import parallel_map
from .part import Part, sum_by_code, total


def fit_codebooks(parts: Sequence[Part], stored: torch.Tensor, format: Format, iterations: int = 12) -> torch.Tensor:
    """Stored vectors (M, stored, g) of least error for the codes and scales of `parts`, by conjugate gradients from `stored`.

    Mirrored and hierarchical codebooks are linear in their stored vectors, so one solver serves all structures. Preconditioned by how much
    weight each vector carries; a millionth of that is added as a ridge, which leaves unused vectors where they are.
    """
    expansion = format.expansion.to(stored.device)
    adjoint = expansion.T

    def image(part: Part, x: torch.Tensor) -> torch.Tensor:
        return sum_by_code(part, part.hessian.times(sum_of(expansion @ x, part.codes) * part.scales) * part.scales, format)

    def carried(part: Part) -> torch.Tensor:
        return sum_by_code(part, part.hessian.diagonal.unsqueeze(1) * part.scales**2, format)

    diagonal = adjoint.square() @ total(parallel_map(carried, parts))
    ridge = 1e-6 * diagonal.mean()
    precondition = 1 / (diagonal + ridge).clamp(min=1e-30)

    def normal(x: torch.Tensor) -> torch.Tensor:
        return adjoint @ total(parallel_map(lambda part: image(part, x), parts)) + ridge * x

    x = stored
    right = adjoint @ total(parallel_map(lambda part: sum_by_code(part, part.wh * part.scales, format), parts))
    residual = right + ridge * x - normal(x)
    z = precondition * residual
    direction, rz = z, (residual * z).sum(dtype=torch.float64)
    first = rz
    for _ in range(iterations):
        if not rz > 1e-6 * first:
            break
        along = normal(direction)
        step = (rz / (direction * along).sum(dtype=torch.float64).clamp(min=1e-300)).float()
        x = x + step * direction
        residual = residual - step * along
        z = precondition * residual
        rz, previous = (residual * z).sum(dtype=torch.float64), rz
        direction = z + (rz / previous).float() * direction
    return x
