"""What sedaq is compared with: for each method its packages, its settings, and what a layer takes in bytes as its library stores it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sedaq.models.layers import EMBEDDING, Layer

Options = Mapping[str, Any]
LayerBytes = Callable[[Layer, Options], int | None]  # None for a layer that the method cannot quantize: it stays at 16 bits
TORCH = {"torch": "2.13.0"}
SDNQ = {**TORCH, "sdnq": "0.2.8"}
ENDS = ("input", "output")  # roles of the layers of a keep list


def is_end(layer: Layer) -> bool:
    """Whether it is an input or an output layer, of a component or of the whole."""
    return layer.role.rpartition(": ")[2] in ENDS


@dataclass(frozen=True)
class Method:
    """A tool or a method.

    packages: with their versions, in an environment of their own; none for a method that is written here.
    label: of a setting, with the names of its options in braces.
    defaults: its settings as they come, at several bits.
    dials: what else it can be set to, from which settings are chosen for a number of bytes.
    layer_bytes: None where it depends on the weights.
    """

    packages: Mapping[str, str]
    label: str
    defaults: Sequence[Options]
    dials: Sequence[Options] = ()
    layer_bytes: LayerBytes | None = None


@dataclass(frozen=True)
class Setting:
    """How a method quantizes a model. keep_ends: leave the input and the output layers at 16 bits."""

    method: str
    options: Options
    keep_ends: bool = False

    @property
    def name(self) -> str:
        return f"{self.method} {METHODS[self.method].label.format(**self.options)}" + (", ends kept" if self.keep_ends else "")

    def takes(self, layer: Layer) -> bool:
        """Whether the method is given a layer."""
        return not (self.keep_ends and is_end(layer))

    def weight_bytes(self, layers: Sequence[Layer]) -> int | None:
        """Of all layers, those that stay at 16 bits among them; None where it depends on the weights."""
        layer_bytes = METHODS[self.method].layer_bytes
        if layer_bytes is None:
            return None
        taken = (layer_bytes(layer, self.options) if self.takes(layer) else None for layer in layers)
        return sum(kept_bytes(layer) if size is None else size for layer, size in zip(layers, taken, strict=True))

    def keeps_more(self, layers: Sequence[Layer]) -> bool:
        """Whether a keep list, if there is one, changes anything, as far as bytes are known without weights."""
        without = replace(self, keep_ends=False).weight_bytes(layers)
        return not self.keep_ends or without is None or self.weight_bytes(layers) != without


def settings_within(method: str, layers: Sequence[Layer], limit: int) -> list[Setting]:
    """Of the settings of at most `limit` bytes of weights the largest, and of those with the longest codes the largest; with a keep list, too.

    All of them where several are equally large; none where none fits.
    """
    found: list[Setting] = []
    for keep_ends in (False, True):
        settings = [Setting(method, options, keep_ends) for options in METHODS[method].dials]
        sized = [(size, setting) for setting in settings if (size := setting.weight_bytes(layers)) is not None and size <= limit]
        longest = max((code_bits(setting.options) for _, setting in sized), default=0)
        for among in (sized, [pair for pair in sized if code_bits(pair[1].options) == longest]):
            largest = max((size for size, _ in among), default=0)
            found += [setting for size, setting in among if size == largest and setting not in found]
    return found


def code_bits(options: Options) -> int:
    """Of a code: the number that its type is called by, and 4 where the method has one type."""
    types = (str(value) for name, value in options.items() if name in ("bits", "nbits", "weights", "weights_dtype", "type"))
    digits = re.search(r"\d", next(types, "4"))
    assert digits, options
    return int(digits[0])


# -- bytes of a layer --------------------------------------------------------------------------------------------------------------------


def kept_bytes(layer: Layer) -> int:
    """At 16 bits."""
    return 2 * layer.n_weights


def packed(n: int, bits: float) -> int:
    """Numbers of so many bits without gaps."""
    return math.ceil(n * bits / 8)


def quanto_bytes(layer: Layer, options: Options) -> int | None:
    """Codes, packed along the first axis of rows or of their groups, and a scale and a shift for each. Groups have 128 columns, or the next fewer
    multiple of 32 that divides a row; rows of 128 columns or fewer, and those that none divides, are not grouped. A single row, in groups or not, has a
    scale and a shift for each place of its last axis: the library takes the other way around what has one output."""
    if layer.kind not in ("linear", "conv2d"):
        return None
    divisors = [size for size in (128, 96, 64, 32) if layer.n_in > 128 and layer.n_in % size == 0]
    columns = divisors[0] if divisors else layer.n_in
    rows, in_a_byte = layer.n_weights // columns, 8 // int(options["weights"].removeprefix("qint"))
    n_scales = rows if rows > 1 else columns if divisors else layer.shape[-1]
    return math.ceil(rows / in_a_byte) * columns + 4 * n_scales


def hqq_bytes(layer: Layer, options: Options) -> int | None:
    """Codes in bytes, of three bits ten to 32 bits, and a scale and a zero point a group, across rows."""
    bits, columns = options["nbits"], options["group_size"]
    rows, rest = divmod(layer.n_weights, columns)
    if layer.kind != "linear" or rest or (bits != 3 and rows * bits % 8):
        return None
    return (4 * math.ceil(rows / 10) if bits == 3 else rows * bits // 8) * columns + 4 * rows


def torchao_bytes(layer: Layer, options: Options) -> int | None:
    """Codes, which the library keeps in bytes, as if packed; a scale a group of input channels, at one tap, and a zero point in a byte."""
    if layer.kind not in ("linear", "conv2d") or layer.shape[1] % options["group_size"]:
        return None
    n_groups = layer.n_weights // options["group_size"]
    return packed(layer.n_weights, options["bits"]) + (3 if options["mapping"] == "asymmetric" else 2) * n_groups


def bitsandbytes_bytes(layer: Layer, options: Options) -> int | None:
    """Codes of 4 bits, a scale of 8 bits a block, a 32-bit scale of 256 of these and their mean. Tables that all layers have alike do not count."""
    if layer.kind != "linear":
        return None
    n_blocks = math.ceil(layer.n_weights / options["blocksize"])
    return packed(layer.n_weights, 4) + n_blocks + 4 * math.ceil(n_blocks / 256) + 4


# Weights and bytes of a block, as ggml-common.h defines them.
GGUF_BLOCKS = {
    "Q2_K": (256, 84),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "Q3_K": (256, 110),
    "IQ4_XS": (256, 136),
    "Q4_0": (32, 18),
    "IQ4_NL": (32, 18),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_0": (32, 34),
}


def gguf_bytes(layer: Layer, options: Options) -> int | None:
    """Rows are joined, so that only the number of all weights has to be a multiple of a block."""
    in_block, size = GGUF_BLOCKS[options["type"]]
    n_blocks, rest = divmod(layer.n_weights, in_block)
    return None if rest else n_blocks * size


SDNQ_MIN_CHANNELS, SDNQ_MIN_WEIGHTS = 32, 16384  # of a layer


def sdnq_bytes(layer: Layer, options: Options) -> int | None:
    """Codes, a scale and a zero point of 16 bits for each group of an output's input channels at each tap, and low-rank factors of 16 bits."""
    bits, channels, rank = int(options["weights_dtype"].removeprefix("uint")), layer.shape[1], options.get("svd_rank", 0)
    if layer.kind == EMBEDDING or channels < SDNQ_MIN_CHANNELS or layer.n_weights < SDNQ_MIN_WEIGHTS:
        return None
    rank = rank if rank <= min(layer.shape[0], layer.n_in) else 0
    wanted = options.get("group_size") or 2 ** (1 + bits + (layer.kind == "linear") + (rank > 0))
    n_groups = max(channels // wanted, 1)
    if n_groups * wanted != channels:  # fewer groups, until they are equal
        n_groups = next((n for n in range(n_groups - 1, 1, -1) if channels % n == 0), 1)
    n_scales = layer.shape[0] * n_groups * math.prod(layer.shape[2:])
    return packed(layer.n_weights, bits) + 4 * n_scales + 2 * rank * (layer.shape[0] + layer.n_in)


def gptq_bytes(layer: Layer, options: Options) -> int:
    """Codes, and a 16-bit scale and a zero point of as many bits as a code for each group of a row's columns."""
    n_groups = layer.shape[0] * math.ceil(layer.n_in / options["group_size"])
    return packed(layer.n_weights, options["bits"]) + 2 * n_groups + packed(n_groups, options["bits"])


def kmeans_bytes(layer: Layer, options: Options) -> int:
    """Codes and a codebook of 16-bit numbers."""
    return packed(layer.n_weights, options["bits"]) + 2 * 2 ** options["bits"]


# -- the table ---------------------------------------------------------------------------------------------------------------------------


def grid(**options: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination."""
    found: list[dict[str, Any]] = [{}]
    for name, values in options.items():
        found = [{**known, name: value} for known in found for value in values]
    return found


GPTQ, KMEANS = "GPTQ", "k-means"
METHODS = {
    GPTQ: Method(
        {},
        "{bits} bits, groups of {group_size}",
        grid(bits=(2, 3, 4), group_size=(128,)),
        grid(bits=(2, 3, 4), group_size=(32, 64, 128)),
        gptq_bytes,
    ),
    KMEANS: Method({}, "{bits} bits", grid(bits=(2, 3, 4)), grid(bits=(2, 3, 4)), kmeans_bytes),
    "quanto": Method(
        {**TORCH, "optimum-quanto": "0.2.7"}, "{weights}", grid(weights=("qint2", "qint4")), grid(weights=("qint2", "qint4")), quanto_bytes
    ),
    "torchao": Method(
        {**TORCH, "torchao": "0.18.0"},
        "int{bits}, groups of {group_size}, {mapping}",
        grid(bits=(2, 3, 4), group_size=(32,), mapping=("symmetric",)),
        grid(bits=(2, 3, 4), group_size=(32, 64, 128), mapping=("symmetric", "asymmetric")),
        torchao_bytes,
    ),
    "hqq": Method(
        {**TORCH, "hqq": "0.2.8.post1"},
        "{nbits} bits, groups of {group_size}",
        grid(nbits=(2, 3, 4), group_size=(64,)),
        grid(nbits=(2, 3, 4), group_size=(16, 32, 64, 128)),
        hqq_bytes,
    ),
    "bitsandbytes": Method(
        {**TORCH, "bitsandbytes": "0.50.2"},
        "nf4, blocks of {blocksize}",
        grid(blocksize=(64,)),
        grid(blocksize=(64, 128, 256, 512, 1024, 2048, 4096)),
        bitsandbytes_bytes,
    ),
    "gguf": Method(
        {**TORCH, "gguf": "0.19.0", "libggml-python": "0.20.2.post1"},
        "{type}",
        grid(type=("Q2_K", "IQ2_S", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K")),
        grid(type=tuple(GGUF_BLOCKS)),
        gguf_bytes,
    ),
    "sdnq": Method(
        SDNQ,
        "{weights_dtype}, group_size {group_size}",
        grid(weights_dtype=("uint2", "uint3", "uint4"), group_size=(0,)),
        grid(weights_dtype=("uint2", "uint3", "uint4"), group_size=(0, 32, 64, 128)),
        sdnq_bytes,
    ),
    "sdnq-svd": Method(
        SDNQ,
        "{weights_dtype} of rank {svd_rank}",
        grid(weights_dtype=("uint2", "uint4"), svd_rank=(32,), use_svd=(True,)),
        grid(weights_dtype=("uint2", "uint3", "uint4"), svd_rank=(4, 8, 16, 32), use_svd=(True,)),
        sdnq_bytes,
    ),
    "sdnq-dynamic": Method(
        SDNQ, "{weights_dtype} at least", grid(weights_dtype=("uint2", "uint3", "uint4"), use_dynamic_quantization=(True,))
    ),
}
