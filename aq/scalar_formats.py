"""Formats that keep every weight by itself: one word names each, and nothing has to be fitted.

A row of SCALAR_FORMATS is all there is to one. Kernels see codes that pick from a codebook over groups of one weight, times a scale a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..kernels.quantized_matrix import QuantizedMatrix

Shape = tuple[int, ...]
TensorSpecs = dict[str, tuple[torch.dtype, Shape]]
_INT8_ZERO = 128  # int8 weights are stored as unsigned codes around it


@dataclass(frozen=True)
class ScalarFormat:
    """One row.

    Args:
        bits: of a weight, scales aside; its place on every layer's menu.
        tensor_specs: (shape of the weight, its stored dtype) → dtype and shape of each stored tensor, by its name.
        encode: rows (out, in) float32 → the stored tensors.
        matrix: (shape of the weight, stored tensors) → what kernels read.
    """

    bits: float
    tensor_specs: Callable[[Shape, torch.dtype], TensorSpecs]
    encode: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    matrix: Callable[[Shape, Mapping[str, torch.Tensor]], QuantizedMatrix]


def _int8_specs(shape: Shape, stored: torch.dtype) -> TensorSpecs:
    return {"codes": (torch.uint8, (math.prod(shape),)), "scales": (torch.float16, (shape[0],))}


def _round_to_int8(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Symmetric round to nearest, one scale a row."""
    scales = (rows.abs().amax(1) / 127).half()
    safe = torch.where(scales > 0, scales.float(), 1.0).unsqueeze(1)
    codes = (rows / safe).round().clamp(-127, 127) + _INT8_ZERO
    return {"codes": codes.to(torch.uint8).reshape(-1), "scales": scales}


def _int8_matrix(shape: Shape, tensors: Mapping[str, torch.Tensor]) -> QuantizedMatrix:
    n_in, scales = math.prod(shape[1:]), tensors["scales"].float()
    numbers = torch.arange(-_INT8_ZERO, _INT8_ZERO, device=scales.device).float().reshape(1, -1, 1)
    return QuantizedMatrix(tensors["codes"].reshape(shape[0], n_in, 1), numbers, scales, n_in, taps=math.prod(shape[2:]))


SCALAR_FORMATS: dict[str, ScalarFormat] = {"int8": ScalarFormat(8.0, _int8_specs, _round_to_int8, _int8_matrix)}
