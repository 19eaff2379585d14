"""Formats of a quantized weight, and their exact bytes.

    asis | int8 | MxBgG[m|h][t|c][q][@BOOK]

2x8g8 is a sum of 2 codewords out of 2^8 for every group of 8 weights. m: mirrored codebooks, c[i + K/2] = -c[i]. h: hierarchical, a code's
high and low halves pick from two books of 2^(B/2) and the codeword is their sum. t / c: a convolution's groups run over the taps of one
channel / over channels at one tap (default c). q: codebooks int8 with one fp16 scale each, else fp16. @BOOK: named, shared codebooks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

import torch

from ..errors import InputError
from .scalar_formats import SCALAR_FORMATS, ScalarFormat

_GRAMMAR = re.compile(
    r"(?P<m>[1-9]\d?)x(?P<b>[1-9]\d?)g(?P<g>[1-9]\d{0,2})(?P<structure>[mh]?)(?P<grouping>[tc]?)(?P<q>q?)(?:@(?P<book>[A-Za-z0-9_.-]+))?",
    re.ASCII,
)
_HELP = f"use asis, {', '.join(SCALAR_FORMATS)} or MxBgG[m|h][t|c][q][@BOOK] such as 2x8g8 or 1x6g4hq, with M 1-8, B 2-12 (even for h) and G 2-64"


@dataclass(frozen=True)
class Format:
    """How one weight is stored. Build it with `Format.parse`; `str` gives the text back."""

    kind: str  # "asis", "additive" or a name in SCALAR_FORMATS
    n_codebooks: int = 0  # M
    code_bits: int = 0  # B
    group_size: int = 0  # g
    structure: str = ""  # "", "m" or "h"
    grouping: str = ""  # "", "t" or "c"
    int8_codebooks: bool = False
    book: str = ""

    @classmethod
    def parse(cls, text: str) -> Format:
        """The format that `text` names. Raises InputError for anything else.

        >>> Format.parse("2x8g8").bits_per_weight((1152, 1152))
        2.0632716049382718
        """
        if text == "asis" or text in SCALAR_FORMATS:
            return cls(text)
        match = _GRAMMAR.fullmatch(text)
        if match is None:
            raise InputError(f"unknown format {text!r}; {_HELP}")
        m, b, g = int(match["m"]), int(match["b"]), int(match["g"])
        if not (1 <= m <= 8 and 2 <= b <= 12 and 2 <= g <= 64) or (match["structure"] == "h" and b % 2):
            raise InputError(f"format {text!r} is out of range; {_HELP}")
        return cls("additive", m, b, g, match["structure"], match["grouping"], bool(match["q"]), match["book"] or "")

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:  # a search asks for it a million times
        if self.kind != "additive":
            return self.kind
        book = f"@{self.book}" if self.book else ""
        return f"{self.n_codebooks}x{self.code_bits}g{self.group_size}{self.structure}{self.grouping}{'q' * self.int8_codebooks}{book}"

    @property
    def scalar(self) -> ScalarFormat | None:
        """The row of a format that keeps every weight by itself."""
        return SCALAR_FORMATS.get(self.kind)

    @property
    def n_entries(self) -> int:
        """K, codewords in a codebook."""
        return 1 << self.code_bits

    @property
    def n_stored_entries(self) -> int:
        """Vectors stored for one codebook: K free, K/2 mirrored, 2·√K hierarchical."""
        return {"": self.n_entries, "m": self.n_entries // 2, "h": 2 << (self.code_bits // 2)}[self.structure]

    @cached_property
    def expansion(self) -> torch.Tensor:
        """(K, stored) float32: codebook = expansion @ stored vectors. This one matrix is all there is to a structure."""
        codes = torch.arange(self.n_entries)
        matrix = torch.zeros(self.n_entries, self.n_stored_entries)
        if self.structure == "m":
            matrix[codes, codes % self.n_stored_entries] = torch.where(codes < self.n_stored_entries, 1.0, -1.0)
        elif self.structure == "h":
            half = self.n_stored_entries // 2
            matrix[codes, codes // half] = 1
            matrix[codes, half + codes % half] = 1
        else:
            matrix[codes, codes] = 1
        return matrix

    def n_groups(self, shape: tuple[int, ...]) -> int:
        """G, groups in a row of the weight (out, in, *taps), padding included."""
        return math.ceil(math.prod(shape[1:]) / self.group_size)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of this shape can have this format: tap groups need exactly the taps of a convolution."""
        if self.kind != "additive" or self.grouping == "":
            return True
        return len(shape) > 2 and (self.grouping == "c" or math.prod(shape[2:]) == self.group_size)

    def tensor_specs(self, shape: tuple[int, ...], stored: torch.dtype = torch.float16) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of each stored tensor, by its name. `stored` is the dtype of a weight left as it is."""
        out = shape[0]
        if self.kind == "asis":
            return {"weight": (stored, tuple(shape))}
        if self.scalar is not None:
            return self.scalar.tensor_specs(shape, stored)
        if not self.fits(shape):
            raise InputError(
                f"format {self} cannot fit a weight of shape {tuple(shape)}; tap groups (t) need a convolution with {self.group_size} taps"
            )
        code_bytes = math.ceil(out * self.n_groups(shape) * self.n_codebooks * self.code_bits / 8)
        specs = {
            "codes": (torch.uint8, (code_bytes,)),
            "codebooks": (torch.int8 if self.int8_codebooks else torch.float16, (self.n_codebooks, self.n_stored_entries, self.group_size)),
            "scales": (torch.float16, (out,)),
        }
        if self.int8_codebooks:
            specs["codebook_scales"] = (torch.float16, (self.n_codebooks,))
        return specs

    def size_bytes(self, shape: tuple[int, ...], stored: torch.dtype = torch.float16) -> int:
        """Bytes of the weight as stored, an own codebook counted even where it is shared."""
        return sum(dtype.itemsize * math.prod(size) for dtype, size in self.tensor_specs(shape, stored).values())

    def bits_per_weight(self, shape: tuple[int, ...], stored: torch.dtype = torch.float16) -> float:
        """Total bits: codes, codebooks and scales over the number of weights."""
        return 8 * self.size_bytes(shape, stored) / math.prod(shape)


BOOK_TENSORS = ("codebooks", "codebook_scales")  # the stored tensors that layers can share

AS_IS = Format("asis")
