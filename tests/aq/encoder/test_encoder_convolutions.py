"""Whole encodings of convolutions: their groups of channels and of taps, and conv groups with a Hessian each."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(n_in: int, seed: int = 1) -> torch.Tensor:
    """A correlated second moment (in, in)."""
    x = gaussian(4 * n_in, n_in, seed=seed) @ (torch.eye(n_in) + 0.3 * gaussian(n_in, n_in, seed=seed + 1))
    return x.T @ x / len(x)


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


@pytest.mark.parametrize(("shape", "groups"), [((480, 1, 3, 3), 12), ((200, 1, 3, 3), 200)])
def test_every_conv_group_is_weighed_by_its_own_hessian(shape, groups):
    weight, important = gaussian(*shape), torch.randint(9, (groups,), generator=torch.Generator().manual_seed(1))
    h = torch.eye(9) + 1000 * torch.diag_embed(F.one_hot(important, 9).float())
    encoding = encode(weight, Format.parse("1x6g3"), h, groups=groups)
    squares = (encoding.dequantize() - weight).square().reshape(groups, -1, 9).mean(1)
    here = squares.gather(1, important.unsqueeze(1))
    assert here.mean() < 0.05 * squares.mean() and (here.squeeze(1) < squares.mean(1)).all()
    # The same layer with its conv groups in another order is the same layer.
    assert encoding.error == pytest.approx(encode(weight.flip(0), Format.parse("1x6g3"), h.flip(0), groups=groups).error, rel=0.2)


@pytest.mark.parametrize("text", ["1x5g2", "2x4g4"])
def test_errors_are_fed_back_through_the_hessian_of_their_own_group(text):
    """Conv groups whose neighbours' inputs go together or against each other, in turn; as good as the two kinds in layers of their own,
    but for codebooks that serve both."""
    n_groups, rows, n_in = 24, 12, 32
    signs = torch.tensor([0.95, -0.95]).repeat(n_groups // 2)
    h = signs.view(-1, 1, 1) ** (torch.arange(n_in).unsqueeze(1) - torch.arange(n_in)).abs()
    weight, format = gaussian(n_groups * rows, n_in), Format.parse(text)
    together = encode(weight, format, h, groups=n_groups).error
    kinds = [weight.view(n_groups, rows, n_in)[i::2].reshape(-1, n_in) for i in range(2)]
    apart = [encode(kind, format, h[i]).error for i, kind in enumerate(kinds)]
    assert together < 1.8 * sum(apart) / 2
