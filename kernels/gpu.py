"""The GPU kernels (gpu_kernels.py): what they read, made once for a matrix, and how they are launched.

One kernel multiplies for any number of tokens, and for convolutions: these are products too, whose inputs lie elsewhere. Where there are
few tiles, several programs share the columns of one, and their sums are added in a fixed order.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from . import gpu_kernels
from .gpu_tiles import MAX_COLUMNS, Tiles, for_dequantizing, parts, tiles
from .prepared import prepared
from .quantized_matrix import Geometry, QuantizedMatrix

log = logging.getLogger("sedaq")

# "bf16-gpu" multiplies float16 as float16.
KERNELS = {"f32-gpu": "exact", "bf16-gpu": "bf16"}
_FEW_PROCESSORS = 8  # that the interpreter pretends to have
_BAND = 8  # tiles of tokens that are multiplied before the next
_LINEAR = Geometry((), (), (), ())
_prepared: WeakIdKeyDictionary = WeakIdKeyDictionary()


def available(device: torch.device) -> tuple[str, ...]:
    """The kernels that a device has: none but on CUDA devices, and none without triton; then one line in the log says so."""
    return tuple(KERNELS) if device.type == "cuda" and _has_triton() else ()


@functools.cache
def _has_triton() -> bool:
    found = importlib.util.find_spec("triton") is not None
    if not found:
        log.warning("triton is not installed, so products on the GPU run in torch and take longer; install sedaq[triton]")
    return found


def choose(x: torch.Tensor, names: Sequence[str], precision: str) -> str:
    """Which of the kernels in `names` multiplies x: never through the whole matrix where another serves."""
    narrow = precision == "bf16" or x.dtype in (torch.float16, torch.bfloat16)
    return next((name for name in (("bf16-gpu", "f32-gpu") if narrow else ("f32-gpu",)) if name in names), "dequantize")


def piece(group_size: int) -> int:
    """How many numbers of a codeword are loaded at once: the widest power of two whose padding of the codeword costs at most a third."""
    return max(p for p in (1, 2, 4, 8, 16) if p == 1 or 3 * (-(-group_size // p) * p) <= 4 * group_size)


class GpuMatrix:
    """A quantized matrix as the GPU kernels read it: codes as they are, codewords padded to whole pieces."""

    def __init__(self, matrix: QuantizedMatrix) -> None:
        _, self.n_groups, m = matrix.codes.shape
        _, n_entries, g = matrix.codebooks.shape
        p = piece(g)
        self.padded = -(-g // p) * p
        self.constants = {"M": m, "K": n_entries, "P": p, "PIECES": self.padded // p}
        compact = matrix.codes if matrix.codes.element_size() <= 2 else matrix.codes.to(torch.uint8 if n_entries <= 256 else torch.int16)
        self.codes = None if compact is matrix.codes and compact.is_contiguous() else compact.contiguous()
        self.scales = matrix.scales.detach().float().contiguous()
        self.width = self.n_groups * self.padded
        self._books: dict[torch.dtype, torch.Tensor] = {}  # filled at first use
        self._tables: dict[Any, tuple[torch.Tensor, int]] = {}

    def books(self, matrix: QuantizedMatrix, dtype: torch.dtype) -> torch.Tensor:
        """(M, K, padded group)."""
        if dtype not in self._books:
            missing = self.padded - matrix.codebooks.shape[2]
            self._books[dtype] = torch.nn.functional.pad(matrix.codebooks.detach().to(dtype), (0, missing)).contiguous()
        return self._books[dtype]

    def columns(self, matrix: QuantizedMatrix, geometry: Geometry, strides: tuple[int, ...]) -> tuple[torch.Tensor, int]:
        """Where each column of the codes meets its inputs, and for how many columns on end these lie side by side.

        Args:
            strides: of the axes of an image; with a linear geometry, whatever the taps, a column's number in the matrix is its position.

        Returns:
            (1 or 4, width and more) int32: the offset from a token's first input, below zero for columns that are padding; of images also the
            steps along three axes.
        """
        key = (geometry.kernel, geometry.dilation, strides)
        if key not in self._tables:
            column = torch.arange(matrix.n_in) if matrix.order is None else matrix.order.cpu()
            taps = math.prod(geometry.kernel)
            offset, tap = column // taps, column % taps
            whole_tiles = -(-self.width // MAX_COLUMNS) * MAX_COLUMNS
            table = torch.zeros(4 if strides else 1, whole_tiles, dtype=torch.int64)
            table[0] = torch.arange(-whole_tiles, 0)  # neighbours, so that padding breaks no run
            coded = torch.arange(matrix.n_in)
            g = matrix.codebooks.shape[2]
            at = coded // g * self.padded + coded % g
            for axis in reversed(range(len(geometry.kernel))):
                steps = tap % geometry.kernel[axis] * geometry.dilation[axis]
                tap = tap // geometry.kernel[axis]
                offset = offset + steps * strides[axis]
                table[1 + axis + 3 - len(strides), at] = steps
            table[0, at] = offset
            self._tables[key] = (table.to(torch.int32).to(matrix.codes.device), _run(table))
        return self._tables[key]


def _run(table: torch.Tensor) -> int:
    """The greatest of 8, 4, 2, 1 such that columns in blocks of so many are neighbours, begin at a multiple of it and take one step."""
    for run in (8, 4, 2):
        blocks = table.view(len(table), -1, run)
        side_by_side = (blocks[0].diff() == 1).all() and (blocks[0, :, 0] % run == 0).all()
        if side_by_side and (blocks[1:] == blocks[1:, :, :1]).all():
            return run
    return 1


def product(
    kernel: str,
    x: torch.Tensor,
    quantized: QuantizedMatrix,
    bias: torch.Tensor | None = None,
    geometry: Geometry | None = None,
    tile: Tiles | None = None,
) -> torch.Tensor:
    """As `dispatch.product`, in the dtype of x; `tile` overrules the choice of tiles.

    Raises RuntimeError where triton is missing.
    """
    if not _has_triton():
        raise RuntimeError(f"kernel {kernel} needs triton, which is not installed; install sedaq[triton]")
    matrix, dtype = prepared(_prepared, quantized, GpuMatrix), x.dtype
    leading, x = x.shape[:-1], x.to(_arithmetic(kernel, dtype))
    if geometry is None:  # images of no axes
        geometry, x = _LINEAR, x.reshape(-1, x.shape[-1])
    else:
        leading = torch.Size((len(x), *geometry.out_size(tuple(x.shape[1:-1]))))
    if x.stride(-1) != 1:
        x = x.contiguous()
    y = x.new_empty(*leading, quantized.n_out, dtype=dtype)
    tokens = math.prod(leading)
    if not y.numel():
        return y
    table, run = matrix.columns(quantized, geometry, x.stride()[1:-1])
    tile = tile or tiles(8 * x.element_size(), tokens, min(run, matrix.constants["P"]), x.device)
    n_parts = parts(tile, tokens, quantized.n_out, matrix.width, _processors(x.device))
    sums = y if n_parts == 1 else x.new_empty(n_parts, tokens, quantized.n_out, dtype=torch.float32)
    bias = None if bias is None else bias.detach().float().contiguous()
    size = tuple(x.shape[1:-1])

    def three(values: Sequence[int], missing: int) -> tuple[int, ...]:
        return (missing,) * (3 - len(values)) + tuple(values)

    n_tiles = math.ceil(tokens / tile.tokens) * math.ceil(quantized.n_out / tile.rows)
    steps = math.ceil(math.ceil(matrix.width / tile.columns) / n_parts)
    with torch.cuda.device_of(x):
        _launch(
            gpu_kernels.product, (n_tiles, n_parts),
            x, sums, quantized.codes if matrix.codes is None else matrix.codes, matrix.books(quantized, x.dtype), matrix.scales, bias, table,
            table.shape[1], tokens, quantized.n_out, matrix.n_groups, steps,
            x.stride(0), three(x.stride()[1:-1], 0), three(size, 1), three(geometry.out_size(size), 1), three(geometry.step, 1),
            three(geometry.padding, 0),
            AXES=len(size) if any(geometry.padding) else 0, RUN=run, **matrix.constants, FINISH=n_parts == 1,
            TOKENS=tile.tokens, ROWS=tile.rows, COLUMNS=tile.columns, BAND=_BAND,
            PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32", num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if n_parts > 1:
            grid = (-(-y.numel() // 1024),)
            _launch(gpu_kernels.finish, grid, sums, y, matrix.scales, bias, n_parts, y.numel(), quantized.n_out, SIZE=1024)
    return y


def dequantize(quantized: QuantizedMatrix, dtype: torch.dtype = torch.float32, tile: Tiles | None = None) -> torch.Tensor:
    """The dense matrix (out, in), as `reference.dequantize` gives it, in one pass. dtype: float32, float16 or bfloat16."""
    matrix = prepared(_prepared, quantized, GpuMatrix)
    y = torch.empty(quantized.n_out, quantized.n_in, dtype=dtype, device=quantized.codes.device)
    table, run = matrix.columns(quantized, _LINEAR, ())
    tile = tile or for_dequantizing(y.device)
    with torch.cuda.device_of(y):
        _launch(
            gpu_kernels.dequantize, (math.ceil(matrix.width / tile.columns), math.ceil(quantized.n_out / tile.rows)),
            y, quantized.codes if matrix.codes is None else matrix.codes, matrix.books(quantized, dtype), matrix.scales, table,
            quantized.n_out, quantized.n_in, matrix.n_groups, RUN=run, **matrix.constants, ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return y


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_stages: int = 1, **constants: Any) -> None:
    """With fewer steps ahead where shared memory is too small for all."""
    while True:
        try:
            kernel[grid](*arguments, num_stages=num_stages, **constants)
            return
        except gpu_kernels.OutOfResources:
            if num_stages == 1:
                raise
            num_stages -= 1


def _arithmetic(kernel: str, dtype: torch.dtype) -> torch.dtype:
    if KERNELS[kernel] == "exact":
        return torch.float32
    return torch.float16 if dtype == torch.float16 else torch.bfloat16


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _FEW_PROCESSORS
