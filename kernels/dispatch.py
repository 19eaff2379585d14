"""Which kernel multiplies: a table of kernels, what each is thought to cost (cost_model.py), and one environment variable that overrules it.

SEDAQ_KERNEL=reference fixes the lookup product of `reference.py`, for results that must repeat bit by bit on any machine; any other name
fixes that kernel wherever it serves.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import InputError
from . import cost_model, gpu, native
from .quantized_matrix import Geometry, QuantizedMatrix
from .reference import product_by_dequantizing, product_by_lookup, rounded

log = logging.getLogger("sedaq")

# Classes of arithmetic, by the relative error of a product that is allowed on normal inputs. A finer kernel serves where a coarser is asked
# for, if that is faster, except that "a8" in any case rounds to 8 bits: a token's activations, or in tables their products with codewords.
PRECISIONS = {"exact": 1e-5, "bf16": 1e-2, "a8": 3e-2}


@dataclass(frozen=True)
class Kernel:
    """A way to multiply, (x, matrix, bias, geometry) → y, and its class of arithmetic, a name in PRECISIONS."""

    product: Callable[[torch.Tensor, QuantizedMatrix, torch.Tensor | None, Geometry | None], torch.Tensor]
    precision: str


def _native(name: str) -> Kernel:
    return Kernel(lambda x, matrix, bias, geometry: native.product(name, x, matrix, bias, geometry), native.KERNELS[name])


def _gpu(name: str) -> Kernel:
    return Kernel(lambda x, matrix, bias, geometry: gpu.product(name, x, matrix, bias, geometry), gpu.KERNELS[name])


KERNELS: dict[str, Kernel] = {
    "reference": Kernel(product_by_lookup, "exact"),
    "dequantize": Kernel(product_by_dequantizing, "exact"),
    **{name: _native(name) for name in native.KERNELS},
    **{name: _gpu(name) for name in gpu.KERNELS},
}

IN_TORCH = ("reference", "dequantize")  # these serve any input


def usable(x: torch.Tensor, precision: str) -> list[str]:
    """Kernels for an input and a class of arithmetic: its own and finer ones. Raises InputError for an unknown class."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    if precision == "exact" and (x.dtype == torch.bfloat16 or (x.dtype == torch.float16 and x.device.type != "cpu")):
        precision = "bf16"
    compiled = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    names = [*IN_TORCH, *(_compiled(x.device) if compiled else ())]
    if precision == "a8":
        return [*usable(x, "exact"), *(name for name in names if KERNELS[name].precision == "a8")]
    classes = {"exact": ("exact",), "bf16": ("exact", "bf16")}[precision]
    return [name for name in names if KERNELS[name].precision in classes]


def _compiled(device: torch.device) -> tuple[str, ...]:
    return native.available() if device.type == "cpu" else gpu.available(device)


_MAX_CHOICES = 4096
_choices: dict[tuple[Any, ...], str] = {}  # by all that they depend on


def choose(x: torch.Tensor, tokens: int, matrix: QuantizedMatrix, precision: str = "exact") -> str:
    """The kernel of the least cost (on GPUs: by rule), or the one that SEDAQ_KERNEL names where it can be used.

    Raises InputError where SEDAQ_KERNEL names none, or one that this machine does not have.
    """
    forced, codes = os.environ.get("SEDAQ_KERNEL"), matrix.codes
    form = (codes.shape, codes.dtype, matrix.codebooks.shape, matrix.n_in, matrix.structure, matrix.cost_model)
    key = (x.dtype, x.device, tokens, form, precision, forced, torch.get_num_threads())
    name = _choices.get(key)
    if name is None:
        if len(_choices) >= _MAX_CHOICES:
            _choices.clear()
        name = _choices[key] = _choose(x, tokens, matrix, precision, forced)
    return name


def _choose(x: torch.Tensor, tokens: int, matrix: QuantizedMatrix, precision: str, forced: str | None) -> str:
    names = [name for name in usable(x, precision) if name not in native.KERNELS or native.serves(name, matrix)]
    if forced:
        here = (*IN_TORCH, *_compiled(x.device))
        if forced not in here:
            raise InputError(f"SEDAQ_KERNEL={forced!r} names no kernel of this machine; choose one of {', '.join(sorted(here))}")
        if forced in names or forced in IN_TORCH:
            return forced
    if x.device.type != "cpu":
        return gpu.choose(x, names, precision)
    return cost_model.cheapest(names, tokens, matrix, precision)


def product(
    x: torch.Tensor,
    matrix: QuantizedMatrix,
    bias: torch.Tensor | None = None,
    geometry: Geometry | None = None,
    precision: str = "exact",
) -> torch.Tensor:
    """x Wᵀ + bias in the dtype of x.

    Args:
        x: (..., in) for a linear layer; for a convolution images with channels last (N, *size, channels).
        precision: a name in PRECISIONS.

    Returns:
        (..., out) or (N, *out_size, out).
    """
    positions = x.shape[:-1] if geometry is None else (len(x), *geometry.out_size(tuple(x.shape[1:-1])))
    tokens = math.prod(positions)
    name = choose(x, tokens, matrix, precision)
    log.debug("kernel %s for %d tokens, %d to %d", name, tokens, matrix.n_in, matrix.n_out)
    return product_by(name, x, matrix, bias, geometry, precision)


def product_by(
    name: str, x: torch.Tensor, matrix: QuantizedMatrix, bias: torch.Tensor | None, geometry: Geometry | None, precision: str
) -> torch.Tensor:
    """As `product`, with a kernel of `usable`. In class "a8" activations are rounded for a kernel that does not do so itself."""
    dtype = x.dtype
    if precision == "a8" and KERNELS[name].precision != "a8":
        if geometry is not None:  # every token has its own scale, so that patches are cut before
            x, geometry, matrix = geometry.columns(x), None, replace(matrix, taps=1)
        x = rounded(x)
    elif precision == "bf16" and name == "dequantize":
        x = x.bfloat16()
    return KERNELS[name].product(x, matrix, bias, geometry).to(dtype)
