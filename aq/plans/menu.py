"""What each layer can choose from, and what each choice weighs.

For every rate (total bits per weight) the menu of a layer holds one format whose total is within the rate, then scalar formats (8-bit
integers) and the weight as it is. Small layers cannot pay for large codebooks, correlated inputs want short groups and the taps of a convolution may belong
together or not, so the best format is a matter of the layer: `candidates` gives a short list by a rule, and menu_choice.py measures it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...models.layers import EMBEDDING, Layer
from ...models.subject import Subject
from ...storage import SAFETENSORS_DTYPES
from ..formats import AS_IS, BOOK_TENSORS, Format
from ..scalar_formats import SCALAR_FORMATS
from ..tensor_files import TensorSpec

RATES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
MIN_EMBEDDING_RATE = 3.0
_GROUP_SIZES = range(2, 33)

# By how many bits per weight a kind of format beats scalars at equal code bits: free, mirrored and hierarchical codebooks. From
# benchmarks/format_gains.py, less what codebooks of that size gain by fitting that layer's own weights. It decides only what is measured.
# Codes of more bits gain more, but their tables cost kernels and encoder too much.
_GAINS: dict[tuple[int, int], tuple[float, float, float]] = {
    (1, 3): (0.03, -0.01, 0.0),
    (1, 4): (0.05, 0.06, 0.0),
    (1, 5): (0.09, 0.08, 0.0),
    (1, 6): (0.14, 0.14, 0.06),
    (1, 7): (0.155, 0.155, 0.0),
    (1, 8): (0.18, 0.19, 0.115),
    (1, 9): (0.21, 0.22, 0.0),
    (2, 4): (0.11, 0.10, 0.0),
    (2, 5): (0.145, 0.145, 0.0),
    (2, 6): (0.17, 0.17, 0.135),
    (2, 7): (0.205, 0.205, 0.0),
    (2, 8): (0.22, 0.22, 0.18),
    (3, 4): (0.145, 0.14, 0.0),
    (3, 5): (0.175, 0.16, 0.0),
    (3, 6): (0.205, 0.20, 0.155),
    (3, 7): (0.235, 0.23, 0.0),
    (3, 8): (0.24, 0.245, 0.19),
    (4, 4): (0.165, 0.155, 0.0),
    (4, 5): (0.195, 0.19, 0.0),
    (4, 6): (0.21, 0.205, 0.15),
    (4, 7): (0.23, 0.23, 0.0),
    (4, 8): (0.25, 0.245, 0.19),
}
_GAIN_OF_A_NUMBER = 2.5  # bits that one number of a codebook is worth, spread over the layer's weights: small layers learn theirs by heart
_INT8_BOOK_LOSS = 0.005


@dataclass(frozen=True)
class Entry:
    """One format on a layer's menu. Bytes of codebooks that are shared are not in it but in `book_bytes`, for they count once."""

    rate: float  # its position in the order of the menu: 1.5, 2, …, 4; 8 for int8; the stored bits of a weight left as it is
    format: Format
    size_bytes: int  # of the weight as stored, which bits_per_weight counts
    file_bytes: int  # what it adds to the safetensors file at most: size_bytes, and entries in the header
    book_bytes: int = 0  # of the shared codebooks
    book_file_bytes: int = 0

    @property
    def book(self) -> str:
        """What shared codebooks go by: layers with an equal one share them."""
        return str(self.format) if self.format.book else ""


@functools.cache
def _kinds(taps: int) -> tuple[Format, ...]:
    """Every kind of format, with a group size of 2; for convolutions over channels and over taps."""
    kinds = []
    for m, b in _GAINS:
        for structure in ("", "m", "h"):
            if structure != "h" or (b % 2 == 0 and b > 4):
                for grouping in ("c", "t") if taps > 1 else ("",):
                    kinds += [Format("additive", m, b, 2, structure, grouping, int8) for int8 in (False, True)]
    return tuple(kinds)


def _longest_code(kind: Format, rate: float, shapes: Sequence[tuple[int, ...]]) -> Format | None:
    """The kind with the shortest groups that fit into the rate for layers of these shapes together, which share its codebooks."""
    taps = math.prod(shapes[0][2:])
    budget = rate * sum(math.prod(shape) for shape in shapes)
    code = kind.n_codebooks * kind.code_bits
    for g in [taps] if kind.grouping == "t" else _GROUP_SIZES:
        book = kind.n_codebooks * (g * kind.n_stored_entries * (8 if kind.int8_codebooks else 16) + 16 * kind.int8_codebooks)
        rows = sum(8 * math.ceil(shape[0] * math.ceil(math.prod(shape[1:]) / g) * code / 8) + 16 * shape[0] for shape in shapes)
        if book + rows <= budget:
            return Format("additive", kind.n_codebooks, kind.code_bits, g, kind.structure, kind.grouping, kind.int8_codebooks)
    return None


@functools.cache
def candidates(rate: float, shapes: tuple[tuple[int, ...], ...], limit: int) -> tuple[Format, ...]:
    """The `limit` most promising formats whose total bits over layers of these shapes are within `rate`, the best first; none may fit.

    Several shapes stand for layers that share codebooks.
    """
    fitting = (_longest_code(kind, rate, shapes) for kind in _kinds(math.prod(shapes[0][2:])))
    n_weights = sum(math.prod(shape) for shape in shapes)
    ranked = sorted((f for f in fitting if f is not None), key=lambda f: predicted_bits(f, n_weights), reverse=True)
    chosen: dict[tuple[int, str], Format] = {}
    for format in ranked:  # what the rule knows least is how many codebooks pay: the best of each number
        chosen.setdefault((format.n_codebooks, format.grouping), format)
    groupings = dict.fromkeys(format.grouping for format in chosen.values())
    share = math.ceil(limit / max(1, len(groupings)))  # a convolution gets both groupings looked at
    best = [format for grouping in groupings for format in [f for f in chosen.values() if f.grouping == grouping][:share]]
    return tuple(sorted(best, key=lambda f: predicted_bits(f, n_weights), reverse=True)[:limit])


def predicted_bits(format: Format, n_weights: int) -> float:
    """Bits per weight of scalars that it is thought to be worth in a layer of so many weights."""
    gain = _GAINS[format.n_codebooks, format.code_bits]["_mh".index(format.structure or "_")]
    own = _GAIN_OF_A_NUMBER * format.n_codebooks * format.n_stored_entries * format.group_size / n_weights
    return format.n_codebooks * format.code_bits / format.group_size + gain + own - _INT8_BOOK_LOSS * format.int8_codebooks


def slowness(format: Format) -> tuple[int, float]:
    """A fixed order of kinds of formats by how long products take, the fast ones first; a machine's timings never decide what a menu holds.

    Tables of 16 entries fit registers (codes of up to 4 bits, halves of hierarchical ones), tables of codes of a byte fit a cache, others
    are written into panels. Within a kind by codes a weight, for each costs a lookup.
    """
    short = format.n_entries <= 16 or (format.structure == "h" and format.n_entries in (64, 256))
    return (0 if short else 1 if format.n_entries <= 256 else 2), format.n_codebooks / format.group_size


@functools.cache
def cheapest(shape: tuple[int, ...]) -> Format:
    """The format of least total bytes, for layers that have none within a rate."""
    kinds = [kind for kind in _kinds(math.prod(shape[2:])) if kind.grouping != "t"]
    formats = [
        Format("additive", kind.n_codebooks, kind.code_bits, g, kind.structure, kind.grouping, kind.int8_codebooks)
        for kind in kinds
        for g in (4, 8, 16)
    ]
    return min(formats, key=lambda format: (format.size_bytes(shape), -predicted_bits(format, math.prod(shape))))


def header_bytes(specs: Mapping[str, TensorSpec], total_bytes: int) -> int:
    """Bytes of tensor entries in a safetensors header, every offset counted with the digits of the largest."""
    digits = len(str(total_bytes))
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    entries = (
        json.dumps(name) + f':{{"dtype":"{names[dtype]}","shape":{json.dumps(list(shape), separators=(",", ":"))},"data_offsets":[,]}},'
        for name, (dtype, shape) in specs.items()
    )
    return sum(len(entry.encode()) + 2 * digits for entry in entries)


def entry(subject: Subject, layer: Layer, format: Format, rate: float | None = None) -> Entry:
    """The menu entry of one format; without a rate, the bits that it takes."""
    stored = subject.tensor_specs[f"{layer.name}.weight"][0]
    specs = {f"{layer.name}.{name}": spec for name, spec in format.tensor_specs(layer.shape, stored).items()}
    shared = {name: specs.pop(name) for name in list(specs) if format.book and name.rpartition(".")[2] in BOOK_TENSORS}
    size, book = _payload(specs), _payload(shared)
    header, book_header = (header_bytes(some, model_bytes(subject)) for some in (specs, shared))
    if shared:  # any of the layers may be the one that holds them
        longest = max(len(name) for name in subject.tensor_specs)
        book_header += len(shared) * longest
    named_by = 8 * (size + book) / layer.n_weights if rate is None else rate
    return Entry(named_by, format, size, size + header, book, book + book_header)


def _payload(specs: Mapping[str, TensorSpec]) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs.values())


def model_bytes(subject: Subject) -> int:
    """Payload of the full-precision denoiser's file."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in subject.tensor_specs.values())


def layer_menu(subject: Subject, layer: Layer, formats: Mapping[float, Format]) -> tuple[Entry, ...]:
    """Entries by ascending size from the format of each rate, scalar formats, and the weight as it is last.

    Tables of embeddings have no rate below MIN_EMBEDDING_RATE: nothing mends a row that few tokens have.
    Rates with the same format are one entry, named by the least.
    """
    stored = subject.tensor_specs[f"{layer.name}.weight"][0]
    as_is = entry(subject, layer, AS_IS, 8.0 * stored.itemsize)
    entries: list[Entry] = []
    scalars = [(scalar.bits, Format(name)) for name, scalar in SCALAR_FORMATS.items()]
    lowest = MIN_EMBEDDING_RATE if layer.kind == EMBEDDING else 0.0
    of_rates = sorted((rate, format) for rate, format in formats.items() if rate >= lowest)
    for rate, format in [*of_rates, *scalars]:
        if all(format != known.format for known in entries):
            entries.append(entry(subject, layer, format, rate))
    return (*_ascending(e for e in entries if e.size_bytes < as_is.size_bytes), as_is)


def _ascending(entries: Iterator[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda e: e.size_bytes)


def heuristic_menus(subject: Subject, rates: Sequence[float] = RATES) -> dict[str, tuple[Entry, ...]]:
    """The menu of every eligible layer by the rule alone: what is on it before anything was measured."""
    menus = {}
    for layer in subject.layers:
        first = {rate: candidates(rate, (layer.shape,), 1) for rate in rates}
        menus[layer.name] = layer_menu(
            subject, layer, {rate: found[0] if found else cheapest(layer.shape) for rate, found in first.items()}
        )
    return menus
