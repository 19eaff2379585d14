"""The CPU kernels in C++ (csrc/), called through their plain C interface."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import InputError
from .prepared import prepared
from .quantized_matrix import Geometry, QuantizedMatrix

log = logging.getLogger("sedaq")

# Names by the number that csrc/sedaq.h gives them, with the class of arithmetic that each is of.
KERNELS = {
    "f32-portable": "exact",
    "f32-avx2": "exact",
    "f32-avx512": "exact",
    "split-amx": "exact",
    "bf16-avx512": "bf16",
    "bf16-amx": "bf16",
    "int8-avx2": "a8",
    "int8-avx512": "a8",
    "int8-amx": "a8",
    "lookup32-portable": "exact",
    "lookup32-avx2": "exact",
    "lookup32-avx512": "exact",
    "lookup16-avx512": "bf16",
    "lookup8-avx512": "a8",
    "shuffle8-avx2": "a8",
    "shuffle8-avx512": "a8",
}
# Tokens that kernels of tables take at once.
TILES = {
    name: tile for family, tile in (("lookup32", 16), ("lookup16", 32), ("lookup8", 64)) for name in KERNELS if name.startswith(family)
}
ISAS = ("portable", "avx2", "avx512", "amx")  # in ascending order
MAX_INPUTS_8_BITS = 66_000  # of int8 kernels: beyond, sums of 255 · 127 could pass 31 bits
LONGEST_GROUP = 256  # SEDAQ_LONGEST_GROUP
MANY_ROWS = 2048  # of csrc/lookup.h
_STRUCTURES = {"": 0, "m": 1, "h": 2}
_NUMBERS = {name: number for number, name in enumerate(KERNELS)}

_I32, _I64 = ctypes.c_int32, ctypes.c_int64


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, _I64) for name in ("n_out", "n_in", "n_groups")),
        *((name, _I32) for name in ("n_codebooks", "n_entries", "group_size", "stride", "code_bytes", "structure")),
        *((name, ctypes.c_void_p) for name in ("codes", "codebooks", "scales", "row_maxima", "bias")),
    ]


class _Input(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("is_bf16", _I32),
        ("n_runs", _I32),
        ("runs", ctypes.c_void_p),
        ("images", _I64),
        *((name, _I64 * 3) for name in ("size", "out_size", "kernel", "step", "padding", "dilation")),
        ("image_stride", _I64),
        ("stride", _I64 * 3),
    ]


def _path() -> Path | None:
    paths = (Path(__file__).parent / "csrc" / f"native{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)


@functools.cache
def library() -> Any | None:
    """The compiled kernels, None where they were not built; then one line in the log says so."""
    path = _path()
    if path is None:
        log.warning(
            "sedaq's C++ kernels were not built here, so products run in torch and take longer; install a C++ compiler and sedaq again"
        )
        return None
    found = ctypes.CDLL(str(path))  # after torch, whose OpenMP it then shares
    found.sedaq_product.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, _I64, ctypes.c_int]
    found.sedaq_row_maxima.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    return found


def serves(kernel: str, matrix: QuantizedMatrix) -> bool:
    """Whether a kernel multiplies by a matrix of this form: groups may be too long (taps of a very large window), rows for sums of 32 bits, and
    byte shuffles want codes of a byte and tables of up to 16 entries."""
    n_entries, group_size = matrix.codebooks.shape[1:]
    if kernel.startswith("shuffle8"):
        short = n_entries <= 16 or (matrix.structure == "h" and n_entries in (64, 256))
        return group_size <= LONGEST_GROUP and short and matrix.codes.element_size() != 2
    return group_size <= LONGEST_GROUP and (not kernel.startswith("int8") or matrix.n_in <= MAX_INPUTS_8_BITS)


def looks_halves_up(kernel: str, matrix: QuantizedMatrix) -> bool:
    """Whether a kernel of tables has those of a hierarchical code's halves only, as csrc/lookup.h decides."""
    narrow = kernel.startswith("lookup32") and not kernel.endswith("avx512")
    return narrow and matrix.structure == "h" and matrix.codebooks.shape[1] == 256 and matrix.n_out < MANY_ROWS


def fingerprint() -> str:
    """Of the compiled kernels."""
    path = _path()
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def available() -> tuple[str, ...]:
    """The kernels that this processor and this build have, up to the instructions that SEDAQ_MAX_ISA names.

    Raises InputError where it names none.
    """
    found, most = library(), os.environ.get("SEDAQ_MAX_ISA") or ISAS[-1]
    if most not in ISAS:
        raise InputError(f"SEDAQ_MAX_ISA={most!r} is unknown; choose one of {', '.join(ISAS)}")
    allowed = ISAS[: ISAS.index(most) + 1]
    return tuple(
        name for name, number in _NUMBERS.items() if name.partition("-")[2] in allowed and found is not None and found.sedaq_has(number)
    )


class NativeMatrix:
    """A quantized matrix as the C++ kernels read it: codes as they are, codewords padded to a power of two."""

    def __init__(self, matrix: QuantizedMatrix) -> None:
        n_out, n_groups, n_codebooks = matrix.codes.shape
        _, n_entries, g = matrix.codebooks.shape
        stride = 1 << (g - 1).bit_length()
        compact = matrix.codes if matrix.codes.element_size() <= 2 else matrix.codes.to(torch.uint8 if n_entries <= 256 else torch.int16)
        self.codes = None if compact is matrix.codes and compact.is_contiguous() else compact.contiguous()
        self.codebooks = torch.nn.functional.pad(matrix.codebooks.detach().float(), (0, stride - g)).contiguous()
        self.scales = matrix.scales.detach().float().contiguous()
        self.runs = _runs(matrix)
        self.n_out = n_out
        self._maxima, self._has_maxima = torch.empty_like(self.scales), False
        structure = _STRUCTURES[matrix.structure] if n_entries <= 4096 else 0
        self._fields = (n_out, matrix.n_in, n_groups, n_codebooks, n_entries, g, stride, compact.element_size(), structure)

    def struct(self, codes: torch.Tensor, bias: torch.Tensor | None, eight_bit: bool) -> _Matrix:
        """Pointers into this, `codes` and `bias`, which have to live as long."""
        pointers = [(codes if self.codes is None else self.codes).data_ptr(), self.codebooks.data_ptr(), self.scales.data_ptr()]
        found = _Matrix(*self._fields, *pointers, None, None if bias is None else bias.data_ptr())
        if eight_bit:
            maxima = (self._maxima.data_ptr(), torch.get_num_threads())
            if not self._has_maxima and _library().sedaq_row_maxima(ctypes.byref(found), *maxima):
                raise MemoryError(f"out of memory for a matrix of {self.n_out} rows")
            self._has_maxima = True
            found.row_maxima = self._maxima.data_ptr()
        return found


def _axes(x: torch.Tensor, geometry: Geometry, out_size: Sequence[int]) -> tuple[Any, ...]:
    """Three numbers each, of axes that are missing too: size, out_size, kernel, step, padding, dilation, stride."""
    known = (x.shape[1:-1], out_size, geometry.kernel, geometry.step, geometry.padding, geometry.dilation, x.stride()[1:-1])
    missing = (1, 1, 1, 1, 0, 1, 0)
    return tuple((_I64 * 3)(*[fill] * (3 - len(values)), *values) for values, fill in zip(known, missing, strict=True))


_NO_AXES = _axes(torch.empty(1, 1), Geometry((), (), (), ()), ())  # of a linear layer: images of one position
_prepared: WeakIdKeyDictionary = WeakIdKeyDictionary()


def prepare(matrix: QuantizedMatrix) -> NativeMatrix:
    """What products of this matrix read, made at the first call."""
    return prepared(_prepared, matrix, NativeMatrix)


def _library() -> Any:
    found = library()
    assert found is not None
    return found


def _runs(matrix: QuantizedMatrix) -> torch.Tensor:
    """Stretches of columns that meet neighbouring channels at one tap, as sedaq_run: (n, 5) of first column, length, tap, first channel, and how
    far apart the columns are."""
    if matrix.order is None:
        return torch.tensor([[tap, matrix.n_in // matrix.taps, tap, 0, matrix.taps] for tap in range(matrix.taps)])
    columns = matrix.order.cpu()
    tap, channel = columns % matrix.taps, columns // matrix.taps
    new = torch.ones(matrix.n_in, dtype=torch.bool)
    new[1:] = (tap[1:] != tap[:-1]) | (channel[1:] != channel[:-1] + 1)
    first = new.nonzero().squeeze(1)
    length = torch.diff(first, append=torch.tensor([matrix.n_in]))
    return torch.stack([first, length, tap[first], channel[first], torch.ones_like(first)], 1)


def product(
    kernel: str, x: torch.Tensor, quantized: QuantizedMatrix, bias: torch.Tensor | None = None, geometry: Geometry | None = None
) -> torch.Tensor:
    """As `dispatch.product`, in bfloat16 if x is and else in float32; x may be a part of more channels."""
    matrix = prepare(quantized)
    if x.dtype != torch.bfloat16:
        x = x.float()
    positions = x.shape[:-1]
    if geometry is None:
        x = x.reshape(-1, x.shape[-1])
    else:
        positions = torch.Size((len(x), *geometry.out_size(tuple(x.shape[1:-1]))))
    if x.stride(-1) != 1:
        x = x.contiguous()
    y = torch.empty(*positions, matrix.n_out, dtype=x.dtype)
    axes = _NO_AXES if geometry is None else _axes(x, geometry, positions[1:])
    runs = (len(matrix.runs), matrix.runs.data_ptr())
    given = _Input(x.data_ptr(), x.dtype == torch.bfloat16, *runs, x.shape[0], *axes[:6], x.stride(0), axes[6])
    bias = None if bias is None else bias.detach().float().contiguous()
    weights = matrix.struct(quantized.codes, bias, KERNELS[kernel] == "a8")
    status = _library().sedaq_product(
        _NUMBERS[kernel], ctypes.byref(weights), ctypes.byref(given), y.data_ptr(), matrix.n_out, torch.get_num_threads()
    )
    if status == 1:
        raise RuntimeError(
            f"kernel {kernel} is not to be had on this processor, or not for groups of {quantized.codebooks.shape[2]} and {quantized.codebooks.shape[1]} codewords; it has {', '.join(available())}"
        )
    if status:
        raise MemoryError(f"kernel {kernel}: out of memory for {matrix.n_out} rows and an input of shape {tuple(x.shape)}")
    return y
