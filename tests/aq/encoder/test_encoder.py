"""Whole encodings, and what a user may give the encoder."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sedaq.aq.encoder.encoder import EFFORTS, encode, parse_effort
from sedaq.aq.encoding import Encoding
from sedaq.aq.formats import Format
from sedaq.errors import InputError
from sedaq.models.hessian import Hessian


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


def same(first: Encoding, *others: Encoding) -> bool:
    """Equal to the bit."""
    return all(
        other.tensors.keys() == first.tensors.keys() and all(torch.equal(other.tensors[name], t) for name, t in first.tensors.items())
        for other in others
    )


# -- how good ----------------------------------------------------------------------------------------------------------------------------


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
def test_more_effort_is_not_worse_on_average(text):
    format, h = Format.parse(text), moment(48)
    efforts = ("draft", "fast", "full")
    errors = [sum(encode(gaussian(48, 48, seed=i), format, h, effort=effort).error for i in range(4)) for effort in efforts]
    assert all(more <= 1.005 * less for less, more in itertools.pairwise(errors)), errors


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


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 5), (2, 2, 3, 3)])
@pytest.mark.parametrize("text", ["1x8g4", "2x6g8h", "1x12g16m", "1x4g4q"])
def test_layers_smaller_than_a_codebook(shape, text):
    weight = gaussian(*shape)
    encoding = encode(weight, Format.parse(text))
    assert encoding.dequantize().shape == shape and encoding.error < 0.05
    assert encoding.size_bytes == Format.parse(text).size_bytes(shape)


@pytest.mark.parametrize("text", ["1x3g4", "2x3g4m"])
def test_rows_that_codebooks_were_not_fitted_on_are_coded_as_well_and_in_their_places(text):
    weight = gaussian(1300, 16) * torch.logspace(-2, 2, 1300)[torch.randperm(1300, generator=torch.Generator().manual_seed(1))].unsqueeze(1)
    few, all_rows = (encode(weight, Format.parse(text), effort=effort).dequantize() for effort in ("fast", "full"))
    errors, best = ((dense - weight).square().sum(1) / weight.square().sum(1) for dense in (few, all_rows))
    assert errors.max() < 0.95 and errors.mean() < 1.15 * best.mean()


@pytest.mark.parametrize("width", [1, 3, 5, 9, 17])
@pytest.mark.parametrize("text", ["1x4g4", "2x3g7", "1x4g64", "1x4g4hq"])
def test_widths_that_are_no_multiple_of_a_group(width, text):
    weight, h, format = gaussian(20, width), moment(width), Format.parse(text)
    encoding = encode(weight, format, h)
    found = objective(weight, encoding.dequantize(), h) / objective(weight, torch.zeros_like(weight), h)
    assert encoding.dequantize().shape == weight.shape and found < 0.9
    assert encoding.error == pytest.approx(found, rel=1e-3) and encoding.size_bytes == format.size_bytes((20, width))


def test_int8_is_within_half_a_step():
    weight = gaussian(20, 30) * torch.logspace(-3, 3, 20).unsqueeze(1)
    dense = encode(weight, Format.parse("int8")).dequantize()
    # Half a step, and what rounding the scale to fp16 moves the largest weight by.
    bound = weight.abs().amax(1, keepdim=True) * (0.5 / 127 + 2**-10)
    assert ((dense - weight).abs() <= bound).all()


@pytest.mark.parametrize("text", ["1x6g4", "2x4g8h", "int8"])
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 32), 1), ((64, 32), 1), ((4000, 24), 1), ((1100, 8), 1), ((400, 1, 3, 3), 400), ((192, 4, 3, 3), 8)]
)
def test_an_encoding_repeats_at_any_number_of_threads(text, shape, groups):
    """Also where there are more threads than rows, and where codebooks are fitted on some of the rows or conv groups."""
    weight, h = gaussian(*shape), moment(math.prod(shape[1:]), groups=groups)
    threads, made = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 2):
            torch.set_num_threads(n)
            made.append(encode(weight, Format.parse(text), h, seed=3, groups=groups))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert same(*made) and len({encoding.error for encoding in made}) == 1


def test_the_stated_error_repeats_at_one_and_two_threads():
    """It is stored, and plans are made with it."""
    weight, h = gaussian(512, 512), moment(512)
    threads, errors = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            errors.append(encode(weight, Format.parse("int8"), h).error)
    finally:
        torch.set_num_threads(threads)
    assert errors[0] == errors[1]


def test_torch_has_its_threads_back_after_a_refusal():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(InputError):
            encode(gaussian(400, 8), Format.parse("1x4g4"), torch.ones(8, 8) - 0.5 * torch.eye(8))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [2.0**-4, 2.0**6])
def test_the_unit_of_weights_and_of_inputs_changes_nothing_but_scales(size):
    weight, h, format = gaussian(24, 16), moment(16), Format.parse("2x4g4")
    encoding, larger, other_inputs = (encode(w, format, m) for w, m in ((weight, h), (size * weight, h), (weight, size * h)))
    assert same(encoding, other_inputs)
    assert torch.equal(larger.dequantize(), size * encoding.dequantize())
    assert larger.error == pytest.approx(encoding.error) and other_inputs.error == pytest.approx(encoding.error)


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


@pytest.mark.parametrize("size", [1e-9, 1e-5, 1e5, 1e8])
@pytest.mark.parametrize("text", ["2x4g4", "int8"])
def test_weights_beyond_what_scales_can_hold_become_nothing_or_are_refused_but_not_nan(size, text):
    """Scales are fp16."""
    try:
        encoding = encode(size * gaussian(16, 16), Format.parse(text))
    except InputError:
        return
    assert encoding.dequantize().isfinite().all() and 0 <= encoding.error <= 1


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


@pytest.mark.parametrize("rows", [4, 400])
def test_a_negative_eigenvalue(rows):
    with pytest.raises(InputError, match="negative eigenvalue"):
        encode(gaussian(rows, 8), Format.parse("1x4g4"), torch.ones(8, 8) - 0.5 * torch.eye(8))


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
    with pytest.raises(InputError, match="`effort`"):
        encode(gaussian(8, 8), Format.parse("1x4g4"), effort=text)


def test_seconds_are_an_effort():
    assert parse_effort("2.5").seconds == 2.5
    assert encode(gaussian(16, 16), Format.parse("1x4g4"), effort="0.01").error < 0.5
    assert {"fast", "full"} < set(EFFORTS)
