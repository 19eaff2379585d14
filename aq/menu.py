"""What each layer can choose from, and what each choice weighs.

For every rate (total bits per weight) the menu of a layer holds one format whose total is within the rate, and the weight as it is. Small
layers cannot pay for large codebooks, so the format depends on the shape: it is the one with the most code bits per weight, since on
heavy-tailed, correlated layers short groups with one book beat long groups at equal total bytes (docs/experiments.md); ties go to the
shorter group, then to the freer codebook.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..models.layers import Layer
from ..models.subject import Subject
from .formats import AS_IS, Format

RATES = (1.5, 2.0, 3.0, 4.0)
_STRUCTURES = {
    "": 0.0,
    "q": 0.01,
    "m": 0.03,
    "h": 0.1,
}  # what a structure costs, in code bits of equal error (docs/experiments.md, the encoder)
_CODE_BITS = range(3, 9)
_GROUP_SIZES = range(2, 9)
TensorSpec = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """One format on a layer's menu."""

    rate: float  # its place in the order of the menu: 1.5, 2, 3, 4; the stored bits of a weight left as it is
    format: Format
    size_bytes: int  # of the weight as stored, which bits_per_weight counts
    file_bytes: int  # what it adds to the safetensors file at most: size_bytes, and entries in the header


@functools.cache
def _candidates() -> tuple[Format, ...]:
    formats = []
    for bits in _CODE_BITS:
        for group in _GROUP_SIZES:
            for structure in _STRUCTURES:
                if structure != "h" or bits % 2 == 0:
                    formats.append(Format.parse(f"1x{bits}g{group}{structure}"))
    return tuple(formats)


def _merit(format: Format) -> tuple[float, int]:
    structure = format.structure or "q" * format.int8_codebooks
    return format.code_bits / format.group_size - _STRUCTURES[structure], -format.group_size


@functools.cache
def format_within(rate: float, shape: tuple[int, ...]) -> Format:
    """The best format whose total bits are within `rate`, or the cheapest of all where none is."""
    within = [format for format in _candidates() if format.bits_per_weight(shape) <= rate]
    if within:
        return max(within, key=_merit)
    return min(_candidates(), key=lambda format: (format.size_bytes(shape), -_merit(format)[0]))


def header_bytes(specs: Mapping[str, TensorSpec], total_bytes: int) -> int:
    """Bytes of tensor entries in a safetensors header, every offset counted with the digits of the largest."""
    digits = len(str(total_bytes))
    names = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int8: "I8",
        torch.uint8: "U8",
    }
    entries = (
        json.dumps(name)
        + f':{{"dtype":"{names.get(dtype, "BOOL")}","shape":{json.dumps(list(shape), separators=(",", ":"))},"data_offsets":[,]}},'
        for name, (dtype, shape) in specs.items()
    )
    return sum(len(entry.encode()) + 2 * digits for entry in entries)


def entry(subject: Subject, layer: Layer, format: Format, rate: float | None = None) -> Entry:
    """The menu entry of one format; without a rate, the bits that it takes."""
    stored = subject.tensor_specs[f"{layer.name}.weight"][0]
    specs = format.tensor_specs(layer.shape, stored)
    size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs.values())
    header = header_bytes({f"{layer.name}.{name}": spec for name, spec in specs.items()}, model_bytes(subject))
    return Entry(8 * size / layer.n_weights if rate is None else rate, format, size, size + header)


def model_bytes(subject: Subject) -> int:
    """Payload of the full-precision denoiser's file."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in subject.tensor_specs.values())


def layer_menu(subject: Subject, layer: Layer, rates: Sequence[float] = RATES) -> tuple[Entry, ...]:
    """Entries by ascending size, the weight as it is last. Rates with the same format are one entry, named by the least."""
    entries: list[Entry] = []
    stored = subject.tensor_specs[f"{layer.name}.weight"][0]
    for rate in sorted(rates):
        format = format_within(rate, layer.shape)
        if all(format != known.format for known in entries):
            entries.append(entry(subject, layer, format, rate))
    as_is = entry(subject, layer, AS_IS, 8.0 * stored.itemsize)
    return (*(e for e in sorted(entries, key=lambda e: e.size_bytes) if e.size_bytes < as_is.size_bytes), as_is)


def menus(subject: Subject, rates: Iterable[float] = RATES) -> dict[str, tuple[Entry, ...]]:
    """The menu of every eligible layer."""
    rates = tuple(rates)
    return {layer.name: layer_menu(subject, layer, rates) for layer in subject.layers}
