"""Safetensors files written tensor by tensor, so that a model may be larger than memory, and their exact size before they are written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import SedaqError
from ..storage import SAFETENSORS_DTYPES

TensorSpec = tuple[torch.dtype, tuple[int, ...]]


def safetensors_layout(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """What a safetensors file begins with, and its tensors' names in the order in which they lie in it.

    The library's writer orders tensors by dtype, widest alignment first, then by name; the order matters for the digits of the offsets.
    """
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    rank = list(names)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    order = sorted(specs, key=lambda name: (-rank.index(specs[name][0]), name))
    for name in order:
        dtype, shape = specs[name]
        end = offset + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def write_tensors_in_turn(
    path: Path, specs: Mapping[str, TensorSpec], tensor: Callable[[str], torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """The file that safetensors writes of all of these tensors, of which only one at a time is in memory.

    Raises:
        SedaqError: for a tensor of another dtype or shape than was announced.
    """
    header, order = safetensors_layout(specs, metadata)
    with open(path, "wb") as file:
        file.write(header)
        for name in order:
            found = tensor(name)
            if (found.dtype, tuple(found.shape)) != specs[name]:
                raise SedaqError(f"{path}: tensor {name} is {found.dtype} {tuple(found.shape)}, announced as {specs[name]}")
            file.write(found.contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
