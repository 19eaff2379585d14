"""What a kernel makes of a quantized matrix once, kept as long as the matrix's codes live."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.utils.weak import WeakIdKeyDictionary

from .quantized_matrix import QuantizedMatrix

T = TypeVar("T")


def prepared(known: WeakIdKeyDictionary, matrix: QuantizedMatrix, make: Callable[[QuantizedMatrix], T]) -> T:
    """`make(matrix)`, made once for a matrix, and again when its tensors are others or hold something else.

    `known` is by the tensor of codes, which lives as long as its layer; with the other tensors and versions of all, for they may change.
    """
    others = (matrix.codebooks, matrix.scales, matrix.order)
    versions = [None if part.is_inference() else part._version for part in (matrix.codes, matrix.codebooks, matrix.scales)]
    form = (matrix.taps, matrix.structure)
    found = known.get(matrix.codes)
    if found is None or any(a is not b for a, b in zip(found[0], others, strict=True)) or found[1:3] != (versions, form):
        found = known[matrix.codes] = (others, versions, form, make(matrix))
    made: T = found[3]
    return made
