"""The encoder's loops in C++ (csrc/), called through their plain C interface; without them torch does the same and takes longer.

beam.py, kmeans.py, part.py and least_squares.py hold the reference that these agree with, but for ties and the last bits of sums.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from ...kernels.native import ISAS
from ...models.hessian import BlockDiagonal
from .. import parallel
from .beam import Beam

log = logging.getLogger("sedaq")

INTERFACE = 2  # SEDAQ_ENCODER_INTERFACE
_NUMBERS = {"portable": 0, "avx2": 1, "avx512": 2}  # as in csrc/encoder.h
_I32, _I64, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class _Block(ctypes.Structure):
    _fields_ = [("data", _POINTER), *((name, _I64) for name in ("width", "group_stride", "row_stride"))]


class _Part(ctypes.Structure):
    _fields_ = [
        *((name, _I64) for name in ("n_conv_groups", "n_rows", "n_columns")),
        *((name, _I32) for name in ("group_size", "n_codebooks", "n_entries", "n_blocks")),
        *((name, _POINTER) for name in ("blocks", "weights", "weighted", "scales", "codebooks", "codes")),
    ]


class _Cloud(ctypes.Structure):
    _fields_ = [
        *((name, _I64) for name in ("n_positions", "n_vectors")),
        *((name, _I32) for name in ("group_size", "n_centres")),
        *((name, _POINTER) for name in ("vectors", "metric", "mass", "centres", "codes")),
    ]


_ARGUMENTS = {
    "encode": (_I64, _I64),
    "improve": (_I64,),
    "products": (_POINTER,),
    "forms": (_POINTER,),
    "sums_by_code": (_POINTER,),
    "carried_by_code": (_POINTER,),
    "assign": (_POINTER, _POINTER),
}


@functools.cache
def library() -> Any | None:
    """The compiled loops, None where they were not built; then one line in the log says so.

    Raises InputError for those of another build.
    """
    paths = (Path(__file__).parents[1] / "csrc" / f"native{suffix}" for suffix in EXTENSION_SUFFIXES)
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        log.warning(
            "sedaq's C++ encoder was not built here, so layers are encoded in torch and take longer; install a C++ compiler and sedaq again"
        )
        return None
    found = ctypes.CDLL(str(path))  # after torch, whose OpenMP it then shares
    if getattr(found, "sedaq_encoder_interface", int)() != INTERFACE:
        raise InputError(f"{path} was built from other sources than these; install sedaq again")
    for name, arguments in _ARGUMENTS.items():
        getattr(found, f"sedaq_{name}").argtypes = [ctypes.c_int, _POINTER, *arguments, ctypes.c_int]
    found.sedaq_kmeans.argtypes = [ctypes.c_int, _POINTER, ctypes.c_int, _POINTER, _POINTER, _I64, ctypes.c_int, ctypes.c_int]
    found.sedaq_factor.argtypes = [ctypes.c_int, _POINTER, _I64, ctypes.c_int]
    return found


def isa() -> int:
    """The number of the widest instructions that this processor and this build have, up to those that SEDAQ_MAX_ISA names."""
    return _isa(os.environ.get("SEDAQ_MAX_ISA") or ISAS[-1])


@functools.cache
def _isa(most: str) -> int:
    if most not in ISAS:
        raise InputError(f"SEDAQ_MAX_ISA={most!r} is unknown; choose one of {', '.join(ISAS)}")
    found = _library()
    return max(number for name, number in _NUMBERS.items() if ISAS.index(name) <= ISAS.index(most) and found.sedaq_encoder_has(number))


def _library() -> Any:
    found = library()
    assert found is not None
    return found


def _call(name: str, *arguments: Any, threads: int) -> None:
    """Raises InputError where sizes or codes are out of range, MemoryError where memory is."""
    status = getattr(_library(), f"sedaq_{name}")(isa(), *arguments, threads)
    if status == 1:
        raise InputError(f"{name} of the C++ encoder: codes or sizes are out of range; encode the layer again")
    if status:
        raise MemoryError(f"{name} of the C++ encoder: out of memory")


class _View:
    """A part, or any rows like one, as the C++ loops read it; tensors that had to be copied live as long as this."""

    def __init__(
        self,
        w: torch.Tensor,
        scales: torch.Tensor,
        matrix: BlockDiagonal,
        codes: torch.Tensor,
        books: torch.Tensor | None,
        size: tuple[int, int, int],
        weighted: torch.Tensor | None = None,
    ) -> None:
        n_codebooks, n_entries, group_size = size
        blocks = [block if block.stride(2) == 1 else block.contiguous() for block in matrix.blocks]
        rows = [None if tensor is None else tensor.contiguous() for tensor in (w, weighted, scales, books)]
        assert codes.dtype == torch.long and all(t.dtype == torch.float32 for t in (*blocks, *rows) if t is not None)
        self.kept = [*rows, codes, *blocks]
        fields = [
            _Block(block.data_ptr(), block.shape[-1], block.stride(0) if block.shape[0] > 1 else 0, block.stride(1)) for block in blocks
        ]
        self.blocks = (_Block * len(blocks))(*fields)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in (*rows, codes)]
        self.part = _Part(*w.shape, group_size, n_codebooks, n_entries, len(blocks), ctypes.addressof(self.blocks), *pointers)

    def call(self, name: str, *arguments: Any) -> None:
        _call(name, ctypes.byref(self.part), *arguments, threads=parallel.threads())


def encode(w: torch.Tensor, scales: torch.Tensor, factor: BlockDiagonal, books: torch.Tensor, kept: Beam) -> torch.Tensor:
    """The codes of `beam.encode`."""
    codes = torch.zeros(*w.shape[:2], w.shape[2] // books.shape[2], len(books), dtype=torch.long)
    _View(w, scales, factor, codes, books, _size(books)).call("encode", kept.within, kept.across)
    return codes


def improve(
    w: torch.Tensor, scales: torch.Tensor, hessian: BlockDiagonal, books: torch.Tensor, codes: torch.Tensor, within: int
) -> torch.Tensor:
    """The codes of `beam.improve`."""
    codes = codes.clone(memory_format=torch.contiguous_format)
    _View(w, scales, hessian, codes, books, _size(books)).call("improve", within)
    return codes


def products(x: torch.Tensor, hessian: BlockDiagonal) -> torch.Tensor:
    """x H of rows (S, R, n)."""
    found = torch.empty(x.shape)
    _View(x, x, hessian, torch.empty(0, dtype=torch.long), None, (1, 1, 1)).call("products", found.data_ptr())
    return found


def forms(
    w: torch.Tensor, scales: torch.Tensor, weighted: torch.Tensor, hessian: BlockDiagonal, books: torch.Tensor, codes: torch.Tensor
) -> torch.Tensor:
    """u H uᵀ and w H uᵀ of each row, u its sums of codewords, `weighted` w H: (S, R, 2), double."""
    found = torch.empty(*w.shape[:2], 2, dtype=torch.float64)
    _View(w, scales, hessian, codes.contiguous(), books, _size(books), weighted).call("forms", found.data_ptr())
    return found


def signals(w: torch.Tensor, hessian: BlockDiagonal) -> torch.Tensor:
    """w H wᵀ of each row: (S, R), double."""
    found = torch.empty(*w.shape[:2], 2, dtype=torch.float64)
    _View(w, w, hessian, torch.empty(0, dtype=torch.long), None, (1, 1, 1)).call("forms", found.data_ptr())
    return found[..., 0]


def sums_by_code(
    w: torch.Tensor,
    scales: torch.Tensor,
    weighted: torch.Tensor,
    hessian: BlockDiagonal,
    codes: torch.Tensor,
    size: tuple[int, int, int],
    books: torch.Tensor | None = None,
) -> torch.Tensor:
    """Σ s · (x H) over the positions of each codeword, for x = s u, or x = w without codebooks, whose product is `weighted`: size (M, K, g)."""
    sums = torch.empty(size)
    _View(w, scales, hessian, codes.contiguous(), books, size, weighted).call("sums_by_code", sums.data_ptr())
    return sums


def carried_by_code(
    w: torch.Tensor, scales: torch.Tensor, hessian: BlockDiagonal, codes: torch.Tensor, size: tuple[int, int, int]
) -> torch.Tensor:
    """Σ s² · H's diagonal block over the positions of each codeword: (M, K, g, g)."""
    carried = torch.empty(*size, size[2])
    _View(w, scales, hessian, codes.contiguous(), None, size).call("carried_by_code", carried.data_ptr())
    return carried


Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # vectors (P, R, g), metric (P, g, g) and mass (P, R) of a cloud


def _clouds(clouds: Sequence[Rows], centres: torch.Tensor) -> tuple[Any, list[torch.Tensor], list[torch.Tensor]]:
    """As the C++ loops read them, where their codes will be, and what has to live as long."""
    codes = [torch.empty(vectors.shape[:2], dtype=torch.long) for vectors, _, _ in clouds]
    kept = [tensor.contiguous() for cloud in clouds for tensor in cloud]
    fields = [
        _Cloud(*c.shape, *reversed(centres.shape), *(t.data_ptr() for t in (*kept[3 * i : 3 * i + 3], centres, c)))
        for i, c in enumerate(codes)
    ]
    return (_Cloud * len(fields))(*fields), codes, kept


def assign(cloud: Rows, centres: torch.Tensor) -> torch.Tensor:
    """The nearest centre of each vector, (P, R)."""
    fields, codes, _kept = _clouds([cloud], centres := centres.contiguous())
    _call("assign", fields, None, None, threads=parallel.threads())
    return codes[0]


def equations(cloud: Rows, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides of every centre's equation, as `Cloud.sums`, of the vectors given to their nearest centres."""
    fields, _codes, _kept = _clouds([cloud], centres := centres.contiguous())
    n_centres, g = centres.shape
    left, right = torch.empty(n_centres, g, g), torch.empty(n_centres, g)
    _call("assign", fields, left.data_ptr(), right.data_ptr(), threads=parallel.threads())
    return left, right


def kmeans(clouds: Sequence[Rows], centres: torch.Tensor, spares: torch.Tensor, iterations: int) -> torch.Tensor:
    """Lloyd's algorithm from `centres` (K, g); one that lost its vectors moves to the next of `spares` (N, g)."""
    centres, spares = centres.clone(memory_format=torch.contiguous_format), spares.contiguous()
    fields, _codes, _kept = _clouds(clouds, centres)
    arguments = (len(clouds), centres.data_ptr(), spares.data_ptr(), len(spares), iterations)
    _call("kmeans", fields, *arguments, threads=parallel.threads())
    return centres


def upper_cholesky(matrices: torch.Tensor) -> torch.Tensor | None:
    """As `models.hessian.upper_cholesky`, in place."""
    found = all(_library().sedaq_factor(isa(), matrix.data_ptr(), len(matrix), parallel.threads()) == 0 for matrix in matrices)
    return matrices if found else None


def _size(books: torch.Tensor) -> tuple[int, int, int]:
    n_codebooks, n_entries, group_size = books.shape
    return n_codebooks, n_entries, group_size
