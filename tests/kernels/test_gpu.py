"""The GPU kernels under Triton's interpreter against the de-quantized product in float64."""

from __future__ import annotations

import dataclasses
import gc
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
from triton.runtime import interpreter

from sedaq.aq.encoding import quantized_matrix
from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import _kinds
from sedaq.kernels import gpu, gpu_kernels
from sedaq.kernels.dispatch import PRECISIONS
from sedaq.kernels.gpu_tiles import Tiles
from sedaq.kernels.quantized_matrix import Geometry, QuantizedMatrix
from sedaq.kernels.reference import dequantize, product_by_dequantizing

ROOT = Path(__file__).resolve().parent.parent.parent
INTERPRETED = isinstance(gpu_kernels.product, interpreter.InterpretedFunction)
pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET=0"),
    pytest.mark.usefixtures("bfloat16_in_the_interpreter", "own_tiles"),
]
DTYPES = {"f32-gpu": torch.float32, "bf16-gpu": torch.bfloat16}
THREE_BY_THREE = Geometry((3, 3), (1, 1), (1, 1), (1, 1))


def random_matrix(n_out: int, n_in: int, m: int, k: int, g: int, *, taps: int = 1, ordered: bool = False, seed: int = 0) -> QuantizedMatrix:
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(k, (n_out, -(-n_in // g), m), generator=rng).to(torch.uint8 if k <= 256 else torch.int16)
    scales = torch.rand(n_out, generator=rng) + 0.5
    order = torch.randperm(n_in, generator=rng) if ordered else None
    return QuantizedMatrix(codes, torch.randn(m, k, g, generator=rng), scales, n_in, order, taps)


def exact(x: torch.Tensor, matrix: QuantizedMatrix, geometry: Geometry | None = None) -> torch.Tensor:
    double = dataclasses.replace(matrix, codebooks=matrix.codebooks.double())
    return product_by_dequantizing(x.double(), double, None, geometry)


def check(kernel: str, x: torch.Tensor, matrix: QuantizedMatrix, geometry: Geometry | None = None, tile: Tiles | None = None) -> None:
    """In the kernel's own dtype: the error is within the class beside the result, or what the result would be if no terms cancelled."""
    x = x.to(DTYPES[kernel])
    expected, found = exact(x, matrix, geometry), gpu.product(kernel, x, matrix, None, geometry, tile)
    assert found.dtype == x.dtype and found.shape == expected.shape
    size = expected.norm() + dequantize(matrix).norm() * x.norm() / max(1, matrix.n_in) ** 0.5
    assert (found.double() - expected).norm() <= PRECISIONS[gpu.KERNELS[kernel]] * size


# -- every format ------------------------------------------------------------------------------------------------------------------------


def menu_formats() -> list[Format]:
    """Every kind of a linear layer's and a convolution's menu; the group sizes 2 to 32 in turn, taps with their own."""
    kinds = [*_kinds(1), *_kinds(9)]
    sizes = [9 if kind.grouping == "t" else 2 + i % 31 for i, kind in enumerate(kinds)]
    return [dataclasses.replace(kind, group_size=g) for kind, g in zip(kinds, sizes, strict=True)] + [Format.parse("int8")]


def of_format(format: Format, shape: tuple[int, ...]) -> QuantizedMatrix:
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (dtype, size) in format.tensor_specs(shape).items():
        whole = torch.randint(0 if dtype == torch.uint8 else -127, 256 if dtype == torch.uint8 else 128, size, generator=rng)
        tensors[name] = (torch.rand(size, generator=rng) + 0.1).to(dtype) if dtype.is_floating_point else whole.to(dtype)
    return quantized_matrix(format, shape, tensors)


def test_the_menus_formats_are_all_there():
    formats = menu_formats()
    assert (
        len(formats) > 200 and {f.group_size for f in formats} >= set(range(2, 33)) and {f.code_bits for f in formats} >= set(range(3, 10))
    )


@pytest.mark.parametrize("format", menu_formats(), ids=str)
def test_every_format_of_the_menus(format):
    if format.grouping:
        matrix, x, geometry = of_format(format, (10, 6, 3, 3)), torch.randn(1, 3, 4, 6), THREE_BY_THREE
    else:
        matrix, x, geometry = of_format(format, (20, 50)), torch.randn(5, 50), None
    for kernel in gpu.KERNELS if not format.int8_codebooks else ["f32-gpu"]:  # 8-bit codebooks are but other numbers
        check(kernel, x, matrix, geometry)


# -- sizes -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", gpu.KERNELS)
@settings(max_examples=25, deadline=None)
@given(
    n_out=st.integers(1, 140),
    n_in=st.integers(1, 300),
    m=st.integers(1, 5),
    k=st.sampled_from([2, 16, 256, 300]),
    g=st.one_of(st.integers(1, 32), st.integers(33, 300)),
    tokens=st.integers(0, 140),
    ordered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_of_any_size(kernel, n_out, n_in, m, k, g, tokens, ordered, seed):
    x = torch.randn(tokens, n_in, generator=torch.Generator().manual_seed(seed))
    check(kernel, x, random_matrix(n_out, n_in, m, k, g, ordered=ordered, seed=seed))


@pytest.mark.parametrize("kernel", gpu.KERNELS)
@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 65, 257, 1300])
def test_every_default_tile_and_several_bands(kernel, tokens):
    check(kernel, torch.randn(tokens, 70), random_matrix(150, 70, 1, 16, 8))


@pytest.mark.parametrize("kernel", gpu.KERNELS)
def test_few_tokens_share_columns_among_programs_and_repeat_bit_by_bit(kernel, monkeypatch):
    launched = []
    launch = gpu._launch
    monkeypatch.setattr(
        gpu, "_launch", lambda function, grid, *rest, **more: (launched.append(grid), launch(function, grid, *rest, **more))
    )
    matrix, x, bias = random_matrix(100, 2100, 2, 256, 8), torch.randn(3, 2100).to(DTYPES[kernel]), torch.randn(100)
    found = gpu.product(kernel, x, matrix, bias)
    assert launched[0][1] > 1 and len(launched) == 2
    whole = exact(x, matrix) + bias
    assert (found.double() - whole).norm() <= PRECISIONS[gpu.KERNELS[kernel]] * whole.norm()
    assert torch.equal(found, gpu.product(kernel, x, matrix, bias))


@pytest.mark.parametrize("g", range(1, 257))
def test_padding_of_codewords_is_at_most_a_third(g):
    p = gpu.piece(g)
    assert p & (p - 1) == 0 and p <= 16 and math.ceil(g / p) * p <= 4 / 3 * g
    assert g % 16 or p == 16


# -- convolutions ------------------------------------------------------------------------------------------------------------------------

GEOMETRIES = [
    Geometry((3,), (1,), (1,), (1,)),
    Geometry((4,), (2,), (3,), (2,)),
    THREE_BY_THREE,
    Geometry((3, 3), (2, 2), (1, 1), (1, 1)),
    Geometry((1, 1), (1, 1), (0, 0), (1, 1)),
    Geometry((3, 2), (2, 1), (0, 0), (1, 2)),
    Geometry((2, 3), (1, 3), (2, 0), (3, 1)),
    Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    Geometry((2, 1, 3), (2, 1, 1), (1, 0, 2), (1, 1, 2)),
]


@pytest.mark.parametrize("kernel", gpu.KERNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels", [5, 16])
def test_convolutions(kernel, geometry, channels):
    taps = math.prod(geometry.kernel)
    size = (7, 6, 5)[: len(geometry.kernel)]
    x = torch.randn(2 if channels == 5 else 1, *size, channels)
    by_tap = torch.arange(channels * taps).view(channels, taps).T.reshape(-1)
    free = random_matrix(20, channels * taps, 2, 16, 8, taps=taps)
    for matrix in (free, dataclasses.replace(free, order=by_tap)):
        check(kernel, x, matrix, geometry)


@pytest.mark.parametrize("kernel", gpu.KERNELS)
def test_part_of_the_channels_of_images_with_channels_first(kernel):
    matrix = random_matrix(18, 8 * 9, 1, 16, 4, taps=9, ordered=True)
    check(kernel, torch.randn(2, 24, 6, 7)[:, 8:16].movedim(1, -1), matrix, THREE_BY_THREE)
    check(kernel, torch.randn(2, 6, 7, 24)[..., 8:16], matrix, THREE_BY_THREE)


def test_neighbouring_channels_are_read_together():
    """The width of a load of inputs: runs of 8 where groups and channels allow, else less."""

    def run(channels: int, g: int, taps: int, by_tap: bool) -> int:
        order = torch.arange(channels * taps).view(channels, taps).T.reshape(-1) if by_tap else None
        matrix = dataclasses.replace(random_matrix(2, channels * taps, 1, 4, g, taps=taps), order=order)
        geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1)) if taps == 9 else gpu._LINEAR
        return gpu.GpuMatrix(matrix).columns(matrix, geometry, (channels * 32, channels)[: len(geometry.kernel)])[1]

    assert run(64, 8, 1, False) == 8 and run(320, 8, 9, True) == 8 and run(64, 16, 9, True) == 8
    assert run(36, 12, 9, True) == 4 and run(64, 9, 9, False) == 1 and run(60, 9, 1, False) == 1


# -- inputs ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", gpu.KERNELS)
def test_inputs_anywhere_in_memory_and_of_any_dtype(kernel):
    """Transposed, with gaps, shifted by one number, of several dimensions; the result has the dtype of x."""
    matrix = random_matrix(18, 24, 1, 16, 4)
    memory = torch.randn(2000)
    inputs = [memory[:480].view(24, 20).T, memory[:960].view(20, 48)[:, 1:25], memory[1:481].view(4, 5, 24), memory[:24]]
    for x in [*inputs, *(x.bfloat16() for x in inputs), inputs[1].half()]:
        found = gpu.product(kernel, x, matrix)
        assert found.dtype == x.dtype
        expected = exact(x.float(), matrix)
        tolerance = max(PRECISIONS[gpu.KERNELS[kernel]], 8e-3 if x.dtype != torch.float32 else 0)  # the interpreter cuts bfloat16 off
        assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("kernel", gpu.KERNELS)
def test_bias_rows_of_scale_zero_and_tokens_of_zeros(kernel):
    matrix, x, bias = random_matrix(33, 40, 2, 16, 8), torch.randn(9, 40), torch.randn(33)
    matrix.scales[5] = 0
    x[3] = 0
    found = gpu.product(kernel, x, matrix, bias)
    assert torch.equal(found[3], bias) and torch.equal(found[:, 5], bias[5].expand(9))


@pytest.mark.parametrize("kernel", gpu.KERNELS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_token_that_is_not_finite_spoils_itself_alone(kernel):
    matrix, x = random_matrix(33, 45, 2, 16, 9), torch.randn(20, 45)
    good = gpu.product(kernel, x, matrix)
    x[3, 5], x[17, 0] = float("nan"), float("inf")
    found = gpu.product(kernel, x, matrix)
    spoilt = torch.zeros(20, dtype=torch.bool).index_fill_(0, torch.tensor([3, 17]), True)
    assert not found[spoilt].isfinite().any() and torch.equal(found[~spoilt], good[~spoilt])


@pytest.mark.parametrize("kernel", gpu.KERNELS)
@pytest.mark.parametrize("shape", [(0, 24), (2, 0, 24)])
def test_no_tokens(kernel, shape):
    assert gpu.product(kernel, torch.empty(shape), random_matrix(18, 24, 1, 16, 4)).shape == (*shape[:-1], 18)


# -- de-quantizing and what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "k", "g", "ordered"), [(1, 256, 8, False), (3, 300, 9, True), (2, 16, 5, False), (1, 256, 1, True), (1, 4, 200, False)]
)
def test_dequantizing_gives_the_dense_matrix(m, k, g, ordered):
    matrix = random_matrix(70, 150, m, k, g, ordered=ordered)
    torch.testing.assert_close(gpu.dequantize(matrix), dequantize(matrix), atol=1e-6, rtol=1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        torch.testing.assert_close(gpu.dequantize(matrix, dtype), dequantize(matrix).to(dtype), atol=3e-2, rtol=3e-2)


def test_a_matrix_is_prepared_once_and_forgotten_with_its_codes():
    matrix, x = random_matrix(64, 128, 2, 256, 8), torch.randn(3, 128)
    gc.collect()
    before = len(gpu._prepared)
    gpu.product("f32-gpu", x, matrix)
    prepared = gpu._prepared[matrix.codes][-1]
    gpu.product("bf16-gpu", x, matrix)
    assert gpu._prepared[matrix.codes][-1] is prepared and len(gpu._prepared) == before + 1
    assert prepared.codes is None and set(prepared._books) == {torch.float32, torch.bfloat16} and len(prepared._tables) == 1
    matrix.codebooks.mul_(2)
    check("f32-gpu", x, matrix)
    assert gpu._prepared[matrix.codes][-1] is not prepared
    del matrix
    gc.collect()
    assert len(gpu._prepared) == before


def test_codes_that_do_not_lie_side_by_side_or_are_wide():
    matrix, x = random_matrix(8, 16, 2, 300, 4), torch.randn(3, 16)
    for codes in (matrix.codes.transpose(1, 2).contiguous().transpose(1, 2), matrix.codes.long()):
        check("f32-gpu", x, dataclasses.replace(matrix, codes=codes))
