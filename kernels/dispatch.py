"""Which kernel multiplies: a table of kernels, a cost for each, and one environment variable that overrules them.

SEDAQ_KERNEL=reference fixes the lookup product of `reference.py`, for results that must repeat bit by bit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import InputError
from .coded import CodedMatrix
from .reference import product_by_dequantizing, product_by_lookup

log = logging.getLogger("sedaq")


@dataclass(frozen=True)
class Kernel:
    product: Callable[[torch.Tensor, CodedMatrix], torch.Tensor]  # x (T, in), matrix → (T, out)
    cost: Callable[[int, CodedMatrix], float]  # tokens, matrix → multiply-adds, a lookup counted as what it costs in them


def _lookup_cost(tokens: int, matrix: CodedMatrix) -> float:
    # Counts a gather of one float in torch as 40 multiply-adds inside a matrix product: a guess, to be replaced by a fitted cost model.
    n_tables = matrix.codes.shape[1] * matrix.codes.shape[2]
    return tokens * n_tables * (matrix.codebooks.shape[1] * matrix.codebooks.shape[2] + 40.0 * matrix.n_out)


def _dequantize_cost(tokens: int, matrix: CodedMatrix) -> float:
    return matrix.n_out * matrix.n_in * (tokens + 20.0 * matrix.codes.shape[2])


KERNELS: dict[str, Kernel] = {
    "reference": Kernel(product_by_lookup, _lookup_cost),
    "dequantize": Kernel(product_by_dequantizing, _dequantize_cost),
}


def choose(tokens: int, matrix: CodedMatrix) -> str:
    """Name of the kernel with the least cost, or the one that SEDAQ_KERNEL names."""
    forced = os.environ.get("SEDAQ_KERNEL")
    if forced:
        if forced not in KERNELS:
            raise InputError(f"SEDAQ_KERNEL={forced!r} names no kernel; choose one of {', '.join(sorted(KERNELS))}")
        return forced
    return min(KERNELS, key=lambda name: KERNELS[name].cost(tokens, matrix))


def product(x: torch.Tensor, matrix: CodedMatrix) -> torch.Tensor:
    """x (..., in) times the coded matrix transposed → (..., out)."""
    flat = x.reshape(-1, x.shape[-1])
    name = choose(len(flat), matrix)
    log.debug("kernel %s for %d tokens, %d to %d", name, len(flat), matrix.n_in, matrix.n_out)
    return KERNELS[name].product(flat, matrix).reshape(*x.shape[:-1], matrix.n_out)
