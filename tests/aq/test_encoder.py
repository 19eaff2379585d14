"""The encoder's steps against exhaustive search and dense least squares, and what a user may give it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from sedaq.aq import encoder
from sedaq.aq.encoder import _State, best_codes, encode, parse_effort
from sedaq.aq.formats import Format
from sedaq.errors import InputError
from sedaq.models.hessian import Hessian

STRUCTURES = ["1x4g4", "2x3g4", "1x4g4m", "2x4g4m", "1x4g4h", "2x4g4h", "1x4g4q"]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(n_in: int, seed: int = 1, groups: int | None = None) -> torch.Tensor:
    """A correlated second moment (in, in), or (groups, in, in)."""
    x = gaussian(groups or 1, 4 * n_in, n_in, seed=seed) @ (torch.eye(n_in) + 0.3 * gaussian(n_in, n_in, seed=seed + 1))
    h = x.transpose(1, 2) @ x / x.shape[1]
    return h if groups else h[0]


def objective(weight: torch.Tensor, approximation: torch.Tensor, h: torch.Tensor) -> float:
    d = (weight - approximation).flatten(1).double()
    return ((d @ h.double()) * d).sum().item()


def state(text: str, rows: int = 12, columns: int = 16, seed: int = 0) -> _State:
    format = Format.parse(text)
    return _State(gaussian(1, rows, columns, seed=seed), Hessian.of(moment(columns)).prepared(None, columns, 1e-3), format, seed)


def stacked(s: _State) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight as a linear function of the stored vectors: matrix (rows · columns, unknowns) and right-hand side, both times H^(1/2)."""
    n_unknown = s.stored.numel()
    columns = []
    for i in range(n_unknown):
        unit = torch.zeros(n_unknown)
        unit[i] = 1
        columns.append((s.words(unit.reshape(s.stored.shape)) * s.scales.unsqueeze(2))[0].double())
    root = torch.linalg.cholesky(s.hessian.blocks[0][0].double())
    return torch.stack([(column @ root).reshape(-1) for column in columns], 1), (s.w[0].double() @ root).reshape(-1)


# -- codes -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k", "g"), [(1, 8, 3), (1, 5, 2), (2, 6, 3), (2, 4, 1)])
def test_codes_equal_exhaustive_search(m, k, g):
    """Beam search is exact for one codebook, and for two where the beam holds all of the first."""
    s, r = 2, 5
    linear, books, scales = gaussian(s, r, g), gaussian(m, k, g, seed=1), gaussian(s, r, 1, seed=2)
    block = torch.stack([moment(g, seed=3 + i) for i in range(s)])
    codes, words = best_codes(linear, block, scales, books, beam=k)
    for i, j in itertools.product(range(s), range(r)):
        energies = {}
        for choice in itertools.product(range(k), repeat=m):
            x = scales[i, j] * sum(books[n, c] for n, c in enumerate(choice))
            energies[choice] = (2 * x @ linear[i, j] + x @ block[i] @ x).item()
        found = tuple(codes[i, j].tolist())
        assert energies[found] == pytest.approx(min(energies.values()), abs=1e-5)
        torch.testing.assert_close(words[i, j], sum(books[n, c] for n, c in enumerate(found)))


def test_a_wider_beam_is_better_on_average():
    linear, books = gaussian(1, 400, 4), 0.7 * gaussian(3, 8, 4, seed=1)
    block, scales = torch.eye(4).unsqueeze(0), torch.ones(1, 400, 1)
    energies = []
    for beam in (1, 2, 8, 64):
        _, words = best_codes(linear, block, scales, books, beam)
        energies.append((2 * (words * linear).sum() + words.square().sum()).item())
    assert energies == sorted(energies, reverse=True) and energies[-1] < energies[0]


@pytest.mark.parametrize("text", STRUCTURES)
@pytest.mark.parametrize("beam", [1, 4])
def test_a_sweep_never_raises_the_objective(text, beam):
    s = state(text)
    errors = [s.error()]
    for _ in range(4):
        s.sweep(beam)
        errors.append(s.error())
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.99 * errors[0], "with correlated inputs the start, which ignores them, is not optimal"


# -- codebooks and scales ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", STRUCTURES)
def test_codebooks_are_the_least_squares_optimum(text):
    s = state(text)
    matrix, target = stacked(s)
    best = torch.linalg.lstsq(matrix, target, driver="gelsd").solution
    least = (matrix @ best - target).square().sum().item()
    before = s.error()
    s.update_codebooks(iterations=200)
    assert s.error() == pytest.approx(least, rel=1e-3)
    assert s.error() < before
    if text == "1x4g4":  # the only one with a single solution
        used = (matrix.square().sum(0) > 0).reshape(s.stored.shape)
        torch.testing.assert_close(s.stored[used], best.reshape(s.stored.shape)[used].float(), atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("text", STRUCTURES)
def test_the_default_number_of_iterations_comes_close(text):
    s = state(text)
    matrix, target = stacked(s)
    least = (matrix @ torch.linalg.lstsq(matrix, target, driver="gelsd").solution - target).square().sum().item()
    start = s.error()
    s.update_codebooks()
    assert s.error() - least < 0.02 * (start - least)


def test_scales_are_the_closed_form_of_each_row():
    s = state("1x4g4")
    s.update_scales()
    h, words = s.hessian.blocks[0][0].double(), s.words(s.stored)[0].double()
    for row, (w, u) in enumerate(zip(s.w[0].double(), words, strict=True)):
        assert s.scales[0, row].item() == pytest.approx(((w @ h @ u) / (u @ h @ u)).item(), rel=1e-4)
        grid = s.scales[0, row].item() * torch.linspace(0.9, 1.1, 21, dtype=torch.float64)
        errors = torch.stack([(a * u - w) @ h @ (a * u - w) for a in grid])
        assert errors.argmin() == 10


def test_a_row_whose_scale_came_out_negative_is_still_fitted():
    """Coarse codewords may point away from a row in the metric of strongly correlated inputs."""
    s = state("1x4g4")
    s.update_scales()
    wanted = s.scales.clone()
    s.scales[0, ::2] *= -0.5
    s.update_scales()
    torch.testing.assert_close(s.scales, wanted)


# -- whole encodings ---------------------------------------------------------------------------------------------------------------------


def test_the_error_falls_as_codebooks_are_added():
    weight, h = gaussian(64, 64), moment(64)
    errors = [encode(weight, Format.parse(f"{m}x4g4"), h).error for m in (1, 2, 3, 4)]
    assert all(b < 0.6 * a for a, b in itertools.pairwise(errors)), errors


def test_the_error_falls_with_code_bits_and_shorter_groups():
    weight, h = gaussian(64, 64), moment(64)
    for texts in (["1x2g4", "1x4g4", "1x6g4"], ["1x4g8", "1x4g4", "1x4g2"]):
        errors = [encode(weight, Format.parse(text), h).error for text in texts]
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("text", ["1x4g4", "2x3g4", "1x4g4h"])
def test_full_effort_is_not_worse_than_fast(text):
    weight, h = gaussian(48, 48), moment(48)
    fast, full = (encode(weight, Format.parse(text), h, effort=effort).error for effort in ("fast", "full"))
    assert full <= 1.005 * fast


def test_a_representable_weight_comes_back():
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    weight = signs[torch.randint(4, (2, 2), generator=torch.Generator().manual_seed(0))].reshape(2, 4) * torch.tensor([[0.5], [3.0]])
    for text in ("1x2g2", "1x4g2", "1x8g2"):  # as many vectors as codewords, fewer, far fewer
        encoding = encode(weight, Format.parse(text))
        torch.testing.assert_close(encoding.dequantize(), weight, atol=3e-3, rtol=1e-3)
        assert encoding.error < 1e-6


def test_zero_rows_and_zero_layers_are_exact():
    weight = gaussian(8, 12)
    weight[[2, 5]] = 0
    for text in ("1x4g4", "2x4g4m", "1x4g4hq", "int8"):
        dense = encode(weight, Format.parse(text), moment(12)).dequantize()
        assert torch.equal(dense[[2, 5]], torch.zeros(2, 12)) and (dense[[0, 1]] != 0).any()
        nothing = encode(torch.zeros(8, 12), Format.parse(text), moment(12))
        assert torch.equal(nothing.dequantize(), torch.zeros(8, 12)) and nothing.error == 0


@pytest.mark.parametrize("text", ["1x4g4", "2x4g8", "1x4g4h"])
def test_weighing_by_a_hessian_beats_the_identity_under_it(text):
    weight, h = gaussian(48, 32), moment(32)
    weighed, plain = (objective(weight, encode(weight, Format.parse(text), hessian).dequantize(), h) for hessian in (h, None))
    assert weighed < 0.9 * plain


@pytest.mark.parametrize("text", ["1x4g4", "2x3g5", "1x4g4mq", "int8", "asis"])
def test_the_stated_error_is_that_of_the_outputs(text):
    weight, x = gaussian(10, 13), gaussian(200, 13, seed=5)
    encoding = encode(weight, Format.parse(text), x.T @ x / len(x))
    wanted, got = x @ weight.T, x @ encoding.dequantize().T
    assert encoding.error == pytest.approx(((wanted - got).square().sum() / wanted.square().sum()).item(), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("text", ["1x4g4", "1x4g9t", "1x4g4c", "2x3g9mt", "int8"])
@pytest.mark.parametrize(("shape", "groups"), [((8, 6, 3, 3), 1), ((8, 3, 3, 3), 2), ((6, 1, 3, 3), 6)])
def test_the_error_of_a_convolution_is_that_of_its_outputs(text, shape, groups):
    weight, images = gaussian(*shape), gaussian(3, shape[1] * groups, 6, 6, seed=2)
    patches = F.unfold(images, 3).reshape(3, groups, -1, 16).permute(1, 0, 3, 2).reshape(groups, 48, -1)
    encoding = encode(weight, Format.parse(text), patches.transpose(1, 2) @ patches / 48, groups=groups)
    wanted, got = (F.conv2d(images, w, groups=groups) for w in (weight, encoding.dequantize()))
    relative = ((wanted - got).square().sum() / wanted.square().sum()).item()
    assert encoding.error == pytest.approx(relative, rel=1e-3, abs=1e-7)
    assert encoding.dequantize().shape == shape and relative < 0.9


def test_one_hessian_may_serve_all_groups_of_a_convolution():
    weight, h = gaussian(6, 2, 3, 3), moment(18)
    once, each = (encode(weight, Format.parse("1x4g4"), hessian, groups=3) for hessian in (h, h.expand(3, 18, 18)))
    assert torch.equal(once.dequantize(), each.dequantize()) and once.error == pytest.approx(each.error)


@pytest.mark.parametrize(
    ("shape", "text"),
    [((6, 4, 5), "1x3g4c"), ((6, 4, 5), "1x3g5t"), ((4, 3, 2, 2, 2), "1x3g8t"), ((4, 3, 2, 2, 2), "1x3g3"), ((8, 8, 1, 1), "1x3g4")],
)
def test_convolutions_of_one_and_three_dimensions_and_pointwise(shape, text):
    encoding = encode(gaussian(*shape), Format.parse(text), moment(math.prod(shape[1:])))
    assert encoding.dequantize().shape == shape and 0 < encoding.error < 0.9


def test_channel_groups_hold_the_channels_of_one_tap():
    # Every tap has one value for all channels: groups over channels see few distinct vectors, groups over the taps as many as rows.
    weight = gaussian(16, 1, 3, 3).sign().expand(16, 8, 3, 3).contiguous()
    assert encode(weight, Format.parse("1x2g8c")).error < 1e-4
    assert encode(weight, Format.parse("1x2g8")).error < 1e-4  # c is the default
    assert encode(weight, Format.parse("1x2g9t")).error > 0.1
    # And the other way round: all kernels out of two.
    kernels = torch.stack([torch.ones(9), torch.tensor([1.0, -1] * 4 + [1])])
    weight = kernels[torch.randint(2, (16, 8), generator=torch.Generator().manual_seed(0))].reshape(16, 8, 3, 3)
    assert encode(weight, Format.parse("1x2g9t")).error < 1e-4
    assert encode(weight, Format.parse("1x2g8c")).error > 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 5), (2, 2, 3, 3)])
@pytest.mark.parametrize("text", ["1x8g4", "2x6g8h", "1x12g16m", "1x4g4q"])
def test_layers_smaller_than_a_codebook(shape, text):
    weight = gaussian(*shape)
    encoding = encode(weight, Format.parse(text))
    assert encoding.dequantize().shape == shape and encoding.error < 0.05
    assert encoding.size_bytes == Format.parse(text).size_bytes(shape)


def test_int8_is_within_half_a_step():
    weight = gaussian(20, 30) * torch.logspace(-3, 3, 20).unsqueeze(1)
    dense = encode(weight, Format.parse("int8")).dequantize()
    # Half a step, and what rounding the scale to fp16 moves the largest weight by.
    bound = weight.abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-10)
    assert ((dense - weight).abs() <= bound).all()


@pytest.mark.parametrize("text", ["1x6g4", "2x4g8h", "int8"])
def test_an_encoding_repeats_at_one_and_two_threads(text):
    weight, h = gaussian(64, 32), moment(32)
    threads, made = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            made.append(encode(weight, Format.parse(text), h, seed=3))
    finally:
        torch.set_num_threads(threads)
    for other in made[1:]:
        assert other.tensors.keys() == made[0].tensors.keys()
        assert all(torch.equal(tensor, made[0].tensors[name]) for name, tensor in other.tensors.items())
        assert other.error == pytest.approx(made[0].error, rel=1e-6)


def test_the_seed_and_the_callers_generator():
    weight, format = gaussian(32, 32), Format.parse("1x5g4")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, other = encode(weight, format, seed=0), encode(weight, format, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first.tensors["codes"], other.tensors["codes"])
    assert first.provenance["seed"] == 0 and first.provenance["effort"] == "fast"


def test_the_weight_is_left_alone():
    weight = gaussian(16, 16)
    copy = weight.clone()
    for text in ("1x4g4", "int8", "asis"):
        encode(weight, Format.parse(text))
    assert torch.equal(weight, copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_and_hessians_of_other_dtypes(dtype):
    weight, h = gaussian(16, 16), moment(16)
    encoding = encode(weight.to(dtype), Format.parse("1x4g4"), h.to(dtype))
    assert encoding.error == pytest.approx(encode(weight, Format.parse("1x4g4"), h).error, rel=0.1)


def test_blocks_of_the_hessian_equal_a_whole_one_with_zeros_between():
    weight, h = gaussian(12, 16), moment(16)
    whole = torch.block_diag(h[:8, :8], h[8:, 8:])
    blocks = Hessian((h[None, :8, :8], h[None, 8:, 8:]))
    for text in ("1x4g4", "1x4g3"):  # the second straddles the edge of the blocks
        a, b = (encode(weight, Format.parse(text), hessian) for hessian in (whole, blocks))
        assert a.error == pytest.approx(b.error, rel=0.02)


def test_inputs_that_are_always_zero():
    weight, h = gaussian(24, 16), moment(16)
    h[:, 3] = h[3, :] = 0
    encoding = encode(weight, Format.parse("2x6g4"), h)
    assert torch.isfinite(encoding.dequantize()).all() and encoding.error < 0.2
    nothing = encode(weight, Format.parse("2x6g4"), torch.zeros(16, 16))
    assert nothing.error == 0 and (nothing.dequantize() - weight).norm() < 0.5 * weight.norm()


# -- what is refused ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("text", ["1x4g4", "int8", "asis"])
def test_weights_that_are_not_finite(value, text):
    weight = gaussian(4, 8)
    weight[1, 2] = value
    with pytest.raises(InputError, match=r"\(4, 8\) holds NaN or infinity"):
        encode(weight, Format.parse(text))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("text", ["1x4g4", "int8"])
def test_a_hessian_that_is_not_finite(value, text):
    h = moment(8)
    h[2, 3] = value
    with pytest.raises(InputError, match="calibrate again"):
        encode(gaussian(4, 8), Format.parse(text), h)


def test_a_negative_diagonal():
    h = moment(8)
    h[2, 2] = -1
    with pytest.raises(InputError, match="not positive semi-definite"):
        encode(gaussian(4, 8), Format.parse("1x4g4"), h)


@pytest.mark.parametrize("shape", [(9, 9), (2, 8, 8), (6, 8), (8,)])
def test_a_hessian_of_the_wrong_size(shape):
    with pytest.raises(InputError, match=r"[Hh]essian.*calibrate again"):
        encode(gaussian(4, 8), Format.parse("1x4g4"), torch.ones(shape))


@pytest.mark.parametrize(("shape", "text"), [((8, 9), "1x4g9t"), ((8, 9), "1x4g9c"), ((8, 4, 3, 3), "1x4g4t")])
def test_groupings_that_the_shape_cannot_have(shape, text):
    with pytest.raises(InputError, match=text):
        encode(gaussian(*shape), Format.parse(text))


def test_a_shared_book_is_refused_where_one_weight_is_given():
    with pytest.raises(InputError, match="1x4g4@attention"):
        encode(gaussian(8, 8), Format.parse("1x4g4@attention"))


@pytest.mark.parametrize("text", ["slow", "0", "-1", "nan", ""])
def test_unknown_effort(text):
    with pytest.raises(InputError, match="--effort"):
        encode(gaussian(8, 8), Format.parse("1x4g4"), effort=text)


def test_seconds_are_an_effort():
    assert parse_effort("2.5").seconds == 2.5
    assert encode(gaussian(16, 16), Format.parse("1x4g4"), effort="0.01").error < 0.5
    assert set(encoder.EFFORTS) == {"fast", "full"}
