"""Every compiled kernel against the de-quantized product in float64: sizes beside all tiles, strides, convolutions, threads."""

from __future__ import annotations

import dataclasses
import gc
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sedaq.errors import InputError
from sedaq.kernels import dispatch, native
from sedaq.kernels.dispatch import PRECISIONS
from sedaq.kernels.quantized_matrix import Geometry, QuantizedMatrix
from sedaq.kernels.reference import dequantize

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ kernels were not built")
KERNELS = native.available()
CONVOLUTIONS = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)


def random_matrix(
    n_out: int, n_in: int, m: int, k: int, g: int, *, structure: str = "", taps: int = 1, ordered: bool = False, seed: int = 0
) -> QuantizedMatrix:
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(k, (n_out, -(-n_in // g), m), generator=rng).to(torch.uint8 if k <= 256 else torch.int16)
    scales = torch.rand(n_out, generator=rng) + 0.5
    order = torch.randperm(n_in, generator=rng) if ordered else None
    books = torch.randn(m, k, g, generator=rng)
    if structure == "m":
        books = torch.cat([books[:, : k // 2], -books[:, : k // 2]], 1)
    elif structure == "h":
        n = math.isqrt(k)
        books = (books[:, :n].unsqueeze(2) + books[:, -n:].unsqueeze(1) / 2).flatten(1, 2)
    return QuantizedMatrix(codes, books, scales, n_in, order, structure, taps)


def structure_for(kernel: str, k: int) -> str:
    """Of codebooks of k codewords that a kernel serves."""
    return "h" if kernel.startswith("shuffle8") and k > 16 else ""


def check(found: torch.Tensor, expected: torch.Tensor, kernel: str) -> None:
    """Relative error of the whole within the class of arithmetic."""
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= PRECISIONS[native.KERNELS[kernel]] * expected.norm()


def exact(x: torch.Tensor, matrix: QuantizedMatrix) -> torch.Tensor:
    return x.double() @ dequantize(matrix).double().T


def size(x: torch.Tensor, matrix: QuantizedMatrix) -> torch.Tensor:
    """Norm of products with other codes, for few outputs that happen to be small."""
    return x.norm() * matrix.scales.norm() * (matrix.codebooks.shape[0] * matrix.codebooks.square().mean()).sqrt()


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    n_out=st.integers(1, 70),
    n_in=st.integers(1, 150),
    m=st.integers(1, 5),
    kind=st.sampled_from(
        [(2, ""), (16, ""), (256, ""), (300, ""), (2, "m"), (16, "m"), (128, "m"), (512, "m"), (4, "h"), (64, "h"), (256, "h"), (1024, "h")]
    ),
    g=st.one_of(st.integers(1, 32), st.integers(33, 256)),
    tokens=st.integers(0, 70),
    ordered=st.booleans(),
    seed=st.integers(0, 99),
)
@example(
    n_out=1, n_in=30, m=2, kind=(64, "h"), g=1, tokens=1, ordered=True, seed=0
)  # one number, whose own rounding is three times the usual
def test_products_of_any_size(kernel, n_out, n_in, m, kind, g, tokens, ordered, seed):
    k, structure = kind
    matrix = random_matrix(n_out, n_in, m, k, g, structure=structure, ordered=ordered, seed=seed)
    draws = -(-64 // max(tokens, 1))  # the classes bound the error of many numbers: a single one's is up to chance
    x = torch.randn(draws, tokens, n_in, generator=torch.Generator().manual_seed(seed + 1000))  # which no codeword follows
    if not native.serves(kernel, matrix):
        with pytest.raises(RuntimeError, match=f"or not for groups of {g} and {k} codewords"):
            native.product(kernel, x[0], matrix)
        return
    expected, found = exact(x, matrix), torch.stack([native.product(kernel, of_draw, matrix) for of_draw in x])
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= PRECISIONS[native.KERNELS[kernel]] * (expected.norm() + size(x, matrix))


def rounding_of_tables(x: torch.Tensor, matrix: QuantizedMatrix) -> torch.Tensor:
    """What rounding tables of products changes an output by at most, (tokens, 1), for every table, of which a hierarchical codebook has two.

    To bytes: half a unit, of which the widest pair of neighbours has 253; a hundredth more, for the number that 16 bits are multiplied by is whole.
    To 16 bits before: half a unit each for inputs, codewords and products, of which the greatest product there can be has 16383.
    """
    x = x.double()[:, slice(None) if matrix.order is None else matrix.order]
    k, g = matrix.codebooks.shape[1:]
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % g)).unflatten(1, (-1, g))
    halves = [matrix.codebooks.double()]
    if k > 16:
        n = math.isqrt(k)
        halves = [halves[0][:, ::n], halves[0][:, :n]]  # apart from a codeword that all of them share
    products = torch.stack([torch.einsum("tjg,mkg->tjmk", groups, half) for half in halves], 3).flatten(1, 3)
    ranges = products.amax(-1) - products.amin(-1)
    pairs = torch.nn.functional.pad(ranges, (0, ranges.shape[1] % 2)).unflatten(1, (-1, 2)).sum(-1)
    fine = x.abs().amax(1, keepdim=True) * max(half.abs().sum(-1).max() for half in halves) / 16383
    return ranges.shape[1] * (1.01 * pairs.amax(1, keepdim=True) / 253 + 3 * fine) / 2


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.startswith("shuffle8")])
@pytest.mark.parametrize(("m", "k", "g"), [(1, 16, 1), (1, 16, 4), (2, 16, 3), (3, 8, 2), (1, 64, 1), (2, 64, 1), (1, 256, 8), (2, 256, 5)])
def test_no_number_is_farther_than_rounding_of_its_tables(kernel, m, k, g):
    for n_in, ordered in ((1, False), (8, True), (30, True), (149, False)):
        torch.manual_seed(n_in)
        matrix = random_matrix(40, n_in, m, k, g, structure=structure_for(kernel, k), ordered=ordered)
        x = torch.randn(400, n_in)
        errors = (native.product(kernel, x, matrix).double() - exact(x, matrix)).abs() / matrix.scales
        assert (errors <= rounding_of_tables(x, matrix)).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_several_panels_and_threads_give_the_same_bits(kernel, threads):
    matrix, x = random_matrix(700, 520, 2, 256, 8, structure=structure_for(kernel, 256)), torch.randn(100, 520)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = native.product(kernel, x, matrix)
        torch.set_num_threads(1)
        assert torch.equal(found, native.product(kernel, x, matrix))
    finally:
        torch.set_num_threads(before)
    check(found, exact(x, matrix), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_more_tokens_than_are_gathered_at_once(kernel):
    matrix = random_matrix(20, 6000, 1, 16, 16)
    x = torch.randn(1500, 6000)
    check(native.product(kernel, x, matrix), exact(x, matrix), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tokens", [1, 2, 8, 129])
@pytest.mark.parametrize(("n_out", "threads"), [(3, 8), (33, 2), (160, 3), (290, 2)])
def test_rows_beside_tiles_and_more_threads_than_tiles(kernel, tokens, n_out, threads):
    matrix, x, bias = random_matrix(n_out, 77, 3, 256, 5, structure=structure_for(kernel, 256)), torch.randn(tokens, 77), torch.randn(n_out)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found, expected = native.product(kernel, x, matrix, bias), exact(x, matrix) + bias
    finally:
        torch.set_num_threads(before)
    assert (found.double() - expected).norm() <= PRECISIONS[native.KERNELS[kernel]] * (expected.norm() + size(x, matrix))


@pytest.mark.parametrize("kernel", KERNELS)
def test_bias_rows_of_scale_zero_and_tokens_of_zeros(kernel):
    matrix, x, bias = random_matrix(33, 40, 2, 16, 8), torch.randn(9, 40), torch.randn(33)
    matrix.scales[5] = 0
    x[3] = 0
    found = native.product(kernel, x, matrix, bias)
    check(found, exact(x, matrix) + bias, kernel)
    assert torch.equal(found[3], bias) and torch.equal(found[:, 5], bias[5].expand(9))


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_anywhere_in_memory(kernel):
    """Transposed, with gaps, shifted by one number, of several dimensions, in bfloat16 and in half precision."""
    matrix = random_matrix(18, 24, 1, 16, 4)
    memory = torch.randn(2000)
    inputs = [memory[:480].view(24, 20).T, memory[:960].view(20, 48)[:, 1:25], memory[1:481].view(4, 5, 24), memory[:24]]
    for x in [*inputs, *(x.bfloat16() for x in inputs), inputs[1].half()]:
        found = native.product(kernel, x, matrix)
        assert found.dtype == (torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32)
        expected = exact(x.float(), matrix)
        tolerance = max(PRECISIONS[native.KERNELS[kernel]], 4e-3 if x.dtype == torch.bfloat16 else 0)
        assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_need_no_gathering(kernel, dtype):
    """Whole rows of tiles; with gaps between rows, and as places of an image."""
    matrix, wide = random_matrix(40, 64, 2, 16, 8), torch.randn(21, 100).to(dtype)
    x = wide[:, 3:67]
    expected, found = exact(x.float(), matrix), native.product(kernel, x, matrix)
    tolerance = max(PRECISIONS[native.KERNELS[kernel]], 4e-3 if dtype == torch.bfloat16 else 0)
    assert (found.double() - expected).norm() <= tolerance * expected.norm()
    one = Geometry((1,), (2,), (1,), (1,))  # every second place, the first of them in the padding
    found = native.product(kernel, x.unsqueeze(0), matrix, None, one)
    assert found.shape == (1, 12, 40) and torch.equal(found[0, 0], torch.zeros(40, dtype=dtype))
    assert (found[0, 1:11].double() - expected[1::2]).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_token_that_is_not_finite_spoils_itself_alone(kernel):
    matrix, x = random_matrix(33, 40, 2, 16, 8), torch.randn(20, 40)
    good = native.product(kernel, x, matrix)
    x[3, 5], x[17, 0] = float("nan"), float("inf")
    found = native.product(kernel, x, matrix)
    spoilt = torch.zeros(20, dtype=torch.bool).index_fill_(0, torch.tensor([3, 17]), True)
    assert not found[spoilt].isfinite().any() and torch.equal(found[~spoilt], good[~spoilt])


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.startswith("shuffle8")])
def test_inputs_that_are_small_beside_others_are_rounded_without_a_bias(kernel):
    matrix = random_matrix(64, 4608, 1, 16, 1)
    x = torch.randn(16, 4608) * torch.randn(4608).mul(0.7).exp()
    expected = exact(x, matrix)
    assert (native.product(kernel, x, matrix).double() - expected).norm() <= 0.09 * expected.norm()  # above each least entry 0.18


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(0, 24), (2, 0, 24)])
def test_no_tokens(kernel, shape):
    assert native.product(kernel, torch.empty(shape), random_matrix(18, 24, 1, 16, 4)).shape == (*shape[:-1], 18)


GEOMETRIES = [
    Geometry((3,), (1,), (1,), (1,)),
    Geometry((5,), (2,), (0,), (2,)),
    Geometry((3, 3), (1, 1), (1, 1), (1, 1)),
    Geometry((1, 1), (1, 1), (0, 0), (1, 1)),
    Geometry((4, 2), (2, 3), (3, 0), (1, 2)),
    Geometry((2, 3, 1), (1, 2, 1), (0, 1, 1), (2, 1, 1)),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "x".join(map(str, g.kernel)))
@pytest.mark.parametrize(("grouping", "channels"), [("taps", 6), ("channels", 6), ("channels", 32)])
def test_convolutions(kernel, geometry, grouping, channels):
    """32 channels are whole rows of tiles, so that places are converted once."""
    taps = torch.Size(geometry.kernel).numel()
    matrix = random_matrix(21, channels * taps, 2, 16, 4, taps=taps)
    if grouping == "channels":  # the channels of one tap side by side, as formats over channels have them
        matrix = dataclasses.replace(matrix, order=torch.arange(channels * taps).view(channels, taps).T.reshape(-1))
    wide = torch.randn(2, *(9, 10, 11)[: len(geometry.kernel)], channels + 3)
    x = wide[..., 2 : 2 + channels]  # as the groups of a convolution are
    dense = dequantize(matrix).double().reshape(21, channels, *geometry.kernel)
    convolve = CONVOLUTIONS[len(geometry.kernel) - 1]
    expected = convolve(x.double().movedim(-1, 1), dense, None, geometry.step, geometry.padding, geometry.dilation).movedim(1, -1)
    check(native.product(kernel, x, matrix, None, geometry), expected, kernel)
    check(native.product(kernel, x.movedim(-1, 1).contiguous().movedim(1, -1), matrix, None, geometry), expected, kernel)


def test_codebooks_and_codes_that_change_are_seen():
    matrix, x = random_matrix(8, 16, 1, 16, 4), torch.randn(3, 16)
    kernel = KERNELS[0]
    native.product(kernel, x, matrix)
    matrix.codebooks.mul_(2)
    check(native.product(kernel, x, matrix), exact(x, matrix), kernel)
    matrix.codes.zero_()
    check(native.product(kernel, x, matrix), exact(x, matrix), kernel)
    other = dataclasses.replace(matrix, scales=torch.full((8,), 3.0))
    check(native.product(kernel, x, other), exact(x, other), kernel)


def test_codes_are_not_copied_and_nothing_outlives_them():
    matrix, x = random_matrix(64, 128, 2, 256, 8), torch.randn(3, 128)
    gc.collect()  # what other tests left
    before = len(native._prepared)
    native.product(KERNELS[0], x, matrix)
    prepared = native._prepared[matrix.codes][-1]
    held = sum(part.numel() * part.element_size() for part in vars(prepared).values() if isinstance(part, torch.Tensor))
    assert matrix.codes.element_size() == 1 and held == 2 * 256 * 8 * 4 + 2 * 64 * 4 + 5 * 8  # codebooks, scales, maxima, one run
    native.product(KERNELS[0], x, matrix)
    assert native._prepared[matrix.codes][-1] is prepared and len(native._prepared) == before + 1
    del matrix
    gc.collect()
    assert len(native._prepared) == before


def test_codes_that_do_not_lie_side_by_side():
    matrix, x = random_matrix(8, 16, 2, 16, 4), torch.randn(3, 16)
    apart = dataclasses.replace(matrix, codes=matrix.codes.transpose(1, 2).contiguous().transpose(1, 2))
    assert not apart.codes.is_contiguous()
    check(native.product(KERNELS[0], x, apart), exact(x, matrix), KERNELS[0])


def test_codes_of_eight_bytes_are_narrowed():
    matrix, x = random_matrix(8, 16, 2, 300, 4), torch.randn(3, 16)
    check(native.product(KERNELS[0], x, dataclasses.replace(matrix, codes=matrix.codes.long())), exact(x, matrix), KERNELS[0])


@pytest.mark.slow
def test_groups_that_are_too_long_are_refused_here_and_served_in_torch(monkeypatch):
    monkeypatch.delenv("SEDAQ_KERNEL", raising=False)
    matrix, x = random_matrix(4, 600, 1, 4, 257), torch.randn(3, 600)
    with pytest.raises(RuntimeError, match="not for groups of 257"):
        native.product(KERNELS[0], x, matrix)
    torch.testing.assert_close(dispatch.product(x, matrix), exact(x, matrix).float(), atol=1e-3, rtol=1e-4)


def test_a_kernel_of_another_processor_is_refused(monkeypatch):
    monkeypatch.setitem(native._NUMBERS, "f32-portable", 99)
    with pytest.raises(RuntimeError, match="kernel f32-portable is not to be had on this processor"):
        native.product("f32-portable", torch.randn(2, 4), random_matrix(4, 4, 1, 4, 2))


@pytest.mark.parametrize("most", native.ISAS)
def test_instructions_can_be_limited(most, monkeypatch):
    monkeypatch.setenv("SEDAQ_MAX_ISA", most)
    beyond = native.ISAS[native.ISAS.index(most) + 1 :]
    assert native.available.__wrapped__() == tuple(name for name in KERNELS if not name.endswith(beyond))
    monkeypatch.setenv("SEDAQ_MAX_ISA", "sse")
    with pytest.raises(InputError, match="SEDAQ_MAX_ISA='sse' is unknown; choose one of portable, avx2, avx512, amx"):
        native.available.__wrapped__()


def test_without_a_compiled_library_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(native, "_path", lambda: None)
    native.library.cache_clear()
    native.available.cache_clear()
    try:
        assert native.available() == () and native.fingerprint() == ""
        native.library()
        assert [record.message for record in caplog.records] == [
            "sedaq's C++ kernels were not built here, so products run in torch and take longer; install a C++ compiler and sedaq again"
        ]
    finally:
        native.library.cache_clear()
        native.available.cache_clear()
