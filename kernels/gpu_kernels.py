"""The GPU kernels, in Triton. gpu.py prepares what they read, launches them, and says what the arguments are.

Decoding: a codeword is cut into PIECES pieces of P numbers, a power of two, so that a tile of weights is a whole number of pieces for any
length of group, and a piece is one wide load.
"""

from __future__ import annotations

from functools import partial
from typing import Any

try:
    import triton
    import triton.language as tl
    from triton.runtime.errors import OutOfResources

    jit: Any = partial(triton.jit, do_not_specialize=("tokens", "steps"))  # else another compilation where they are 1 or multiples of 16
except ImportError:  # gpu.py then launches nothing
    OutOfResources = RuntimeError

    def jit(function: Any) -> Any:
        return function


@jit
def decoded(
    codes, books, rows, n_out, n_groups, step,
    M: tl.constexpr, K: tl.constexpr, P: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The tile (ROWS, COLUMNS) of the matrix whose columns begin at step · COLUMNS, without scales, in the dtype of `books`."""
    piece = step * (COLUMNS // P) + tl.arange(0, COLUMNS // P)
    group, begin = piece // PIECES, piece % PIECES * P
    here = (rows < n_out)[:, None] & (group < n_groups)[None, :]
    places = codes + rows.to(tl.int64)[:, None] * (n_groups * M) + group[None, :] * M
    inside = begin[None, :, None] + tl.arange(0, P)[None, None, :]
    code = tl.load(places, mask=here, other=0).to(tl.int32)
    sums = tl.load(books + code[:, :, None] * (PIECES * P) + inside)
    for m in tl.static_range(1, M):
        code = tl.load(places + m, mask=here, other=0).to(tl.int32)
        sums += tl.load(books + (m * K + code[:, :, None]) * (PIECES * P) + inside)
    return tl.reshape(sums, (ROWS, COLUMNS))


@jit
def product(
    x, y, codes, books, scales, bias, columns, width, tokens, n_out, n_groups, steps, image_stride, stride, size, out_size, move, padding,
    AXES: tl.constexpr, RUN: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr, PIECES: tl.constexpr, FINISH: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of y (TOKENS, ROWS): all columns, scaled and with bias; or, without FINISH, the float32 sum over some columns.

    Tuples are by axis of the image. Of the last AXES axes, inputs outside the image are zeros.
    """
    # Tiles in bands of BAND tiles of tokens: neighbours in time share weights, and the band's tokens stay in the second-level cache.
    tile, n_tiles = tl.program_id(0), tl.cdiv(n_out, ROWS)
    band = tile // (BAND * n_tiles)
    height = tl.minimum(tl.cdiv(tokens, TOKENS) - band * BAND, BAND)
    within = tile % (BAND * n_tiles)
    token = (band * BAND + within % height) * TOKENS + tl.arange(0, TOKENS)
    row = within // height * ROWS + tl.arange(0, ROWS)

    x2, rest = token % out_size[2], token // out_size[2]
    x1, rest = rest % out_size[1], rest // out_size[1]
    x0, image = rest % out_size[0], rest // out_size[0]
    place = (x0 * move[0] - padding[0], x1 * move[1] - padding[1], x2 * move[2] - padding[2])
    start = image.to(tl.int64) * image_stride + place[0] * stride[0] + place[1] * stride[1] + place[2] * stride[2]

    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    first = tl.program_id(1) * steps
    for step in range(first, tl.minimum(first + steps, tl.cdiv(n_groups * (PIECES * P), COLUMNS))):
        column = columns + step * COLUMNS + tl.arange(0, COLUMNS)
        offset = tl.max_contiguous(tl.multiple_of(tl.load(column), RUN), RUN)
        read = (token < tokens)[:, None] & (offset >= 0)[None, :]
        for axis in tl.static_range(3 - AXES, 3):
            at = place[axis][:, None] + tl.max_constancy(tl.load(column + (1 + axis) * width), RUN)[None, :]
            read = read & (at >= 0) & (at < size[axis])
        inputs = tl.load(x + start[:, None] + offset[None, :], mask=read, other=0)
        weights = decoded(codes, books, row, n_out, n_groups, step, M, K, P, PIECES, ROWS, COLUMNS)
        sums = tl.dot(inputs, tl.trans(weights), sums, input_precision=PRECISION)

    if FINISH:
        sums *= tl.load(scales + row, mask=row < n_out, other=0)[None, :]
        if bias is not None:
            sums += tl.load(bias + row, mask=row < n_out, other=0)[None, :]
    number = tl.program_id(1).to(tl.int64) * tokens + token
    written = (token < tokens)[:, None] & (row < n_out)[None, :]
    tl.store(y + number[:, None] * n_out + row[None, :], sums.to(y.dtype.element_ty), mask=written)


@jit
def finish(parts, y, scales, bias, n_parts, n, n_out, SIZE: tl.constexpr):
    """Parts (n_parts, tokens, out) → y (tokens, out) of n numbers: their sum in a fixed order, scaled and with bias."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    row = at % n_out
    sums = tl.zeros((SIZE,), tl.float32)
    for _ in range(n_parts):
        sums += tl.load(parts + at, mask=at < n, other=0)
        parts += n
    sums *= tl.load(scales + row)
    if bias is not None:
        sums += tl.load(bias + row)
    tl.store(y + at, sums.to(y.dtype.element_ty), mask=at < n)


@jit
def dequantize(
    y, codes, books, scales, columns, n_out, n_in, n_groups,
    RUN: tl.constexpr, M: tl.constexpr, K: tl.constexpr, P: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of the dense matrix y (out, in); columns: (width,) where each coded column goes, below zero for none."""
    step = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    weights = decoded(codes, books, row, n_out, n_groups, step, M, K, P, PIECES, ROWS, COLUMNS)
    scaled = weights.to(tl.float32) * tl.load(scales + row, mask=row < n_out, other=0)[:, None]
    offset = tl.max_contiguous(tl.multiple_of(tl.load(columns + step * COLUMNS + tl.arange(0, COLUMNS)), RUN), RUN)
    written = (row < n_out)[:, None] & (offset >= 0)[None, :]
    tl.store(y + row.to(tl.int64)[:, None] * n_in + offset[None, :], scaled.to(y.dtype.element_ty), mask=written)
