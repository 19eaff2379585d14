"""Grids, ranges and buckets, against the definitions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sedaq.aq.activations.quantizer import (
    N_BUCKETS,
    SCHEMES,
    Activation,
    ActivationQuantizer,
    ActivationQuantizers,
    Clock,
    attached,
    fake_quantize,
)
from sedaq.errors import InputError, SedaqError
from sedaq.kernels import dispatch

CHOICES = [Activation(bits, scheme) for bits in (4, 6, 8) for scheme in SCHEMES]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class _Stepped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def static(bits: int, scheme: str, scales: list[float], shift: float = 0.0) -> tuple[ActivationQuantizer, Clock]:
    choice = Activation(bits, scheme)
    ranges = torch.stack([torch.tensor(scales).log(), *([torch.full((N_BUCKETS,), shift)] if choice.is_affine else [])])
    clock = Clock(_Stepped(), tuple(range(10, 80, 10)))
    return ActivationQuantizer(choice, (), 1, {"ranges": ranges}, clock), clock


# -- grids -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: f"{c.bits}-{c.scheme}")
def test_values_land_on_the_nearest_point_of_the_grid(choice):
    x, scale, shift = 3 * noise(500), torch.tensor(0.1), torch.tensor(-0.3)
    lowest = choice.largest * shift if choice.is_affine else -choice.largest
    grid = scale * (torch.arange(2**choice.bits - (0 if choice.is_affine else 1)) + lowest)
    nearest = grid[(x.unsqueeze(1) - grid).abs().argmin(1)]
    torch.testing.assert_close(fake_quantize(x, choice, scale, shift), nearest, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["step", "step-affine"])
def test_gradients_are_those_of_learned_step_sizes(scheme):
    """By x: one inside of the grid, zero outside. By the scale: rounding error inside (over the scale), the end of the grid outside."""
    choice = Activation(4, scheme)
    x = noise(200).mul(2).requires_grad_()
    scale, shift = torch.tensor(0.2, requires_grad=True), torch.tensor(-0.4, requires_grad=True)
    y = fake_quantize(x, choice, scale, shift)
    y.sum().backward()
    places = (x / scale - choice.largest * shift if choice.is_affine else x / scale).detach()
    low = 0 if choice.is_affine else -choice.largest
    inside = (places.round() >= low) & (places.round() <= choice.largest)
    assert 0 < inside.sum() < 200
    assert torch.equal(x.grad, inside.float())
    offset = choice.largest * shift.item() if choice.is_affine else 0.0
    by_scale = torch.where(inside, places.round() - places, places.clamp(low, choice.largest) + offset).sum()
    torch.testing.assert_close(scale.grad, by_scale, rtol=1e-3, atol=1e-2)
    if choice.is_affine:
        torch.testing.assert_close(shift.grad, (choice.largest * scale * (~inside)).sum(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_numbers_are_the_same_without_gradients_and_the_input_stays(choice):
    x, scale, shift = noise(60).reshape(3, 20), torch.tensor(0.2), torch.tensor(-0.4) if choice.is_affine else None
    before = x.clone()
    plain = fake_quantize(x, choice, scale, shift)
    assert torch.equal(x, before)
    assert torch.equal(plain, fake_quantize(x.requires_grad_(), choice, scale, shift).detach())


def test_choices_that_do_not_exist():
    with pytest.raises(InputError, match="activations of 9 bits: choose 2 to 8"):
        Activation(9)
    with pytest.raises(InputError, match="scheme 'channel' is unknown; choose among token, token-affine, step, step-affine"):
        Activation(8, "channel")


def test_what_kernels_compute_with_and_what_is_stored():
    assert [choice for choice in CHOICES if choice.is_real] == [Activation(8, "token")]
    assert Activation(6, "token").tensor_specs() == Activation(6, "token-affine").tensor_specs() == {}
    assert Activation(6, "step").tensor_specs() == {"ranges": (torch.float32, (1, N_BUCKETS))}
    assert Activation(6, "step-affine").tensor_specs() == {"ranges": (torch.float32, (2, N_BUCKETS))}


# -- dynamic ranges ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["token", "token-affine"])
@pytest.mark.parametrize("bits", [4, 8])
def test_each_token_has_the_range_of_its_own_values(bits, scheme):
    x = noise(2, 5, 16) * noise(2, 5, 1, seed=1).exp() + noise(2, 5, 1, seed=2)
    y = ActivationQuantizer(Activation(bits, scheme))(x)
    for token, rounded in zip(x.reshape(-1, 16), y.reshape(-1, 16), strict=True):
        if scheme == "token":
            step = token.abs().max() / (2 ** (bits - 1) - 1)
            expected = (token / step).round() * step
        else:
            step = (token.max() - token.min()) / (2**bits - 1)
            expected = ((token - token.min()) / step).round() * step + token.min()
            assert rounded.min().item() == pytest.approx(token.min().item(), abs=1e-4)
            assert rounded.max().item() == pytest.approx(token.max().item(), abs=1e-4)
        assert ((rounded - expected).abs() < 1e-4).float().mean() > 0.98, "ties apart"
        assert (rounded - token).abs().max() <= step / 2 * 1.001
    assert torch.equal(ActivationQuantizer(Activation(bits, scheme))(torch.zeros(1, 4)), torch.zeros(1, 4))


@pytest.mark.parametrize(("window", "size"), [((3, 3), (6, 5)), ((1, 1), (4, 4)), ((2, 3), (5, 5)), ((3,), (7,)), ((3, 1, 2), (4, 4, 4))])
def test_of_a_convolution_each_place_has_the_range_of_its_window(window, size):
    x = noise(2, 3, *size)
    rounding = ActivationQuantizer(Activation(4, "token"), window)
    greatest = x.abs().amax(1)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in size)).reshape(-1, len(size)).tolist():
        around = [slice(max(0, p - k // 2), p + (k - 1) // 2 + 1) for p, k in zip(place, window, strict=True)]
        top = greatest[(slice(None), *around)].flatten(1).amax(1) / 7
        here = (slice(None), slice(None), *place)
        torch.testing.assert_close(rounding(x)[here], (x[here] / top.unsqueeze(1)).round() * top.unsqueeze(1), atol=1e-6, rtol=1e-5)


def test_gradients_pass_through_dynamic_rounding():
    x = noise(3, 8).requires_grad_()
    ActivationQuantizer(Activation(6, "token"))(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 8))


# -- static ranges -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["step", "step-affine"])
def test_static_ranges_are_those_of_the_bucket_of_each_row(scheme):
    scales = [0.01 * 2**i for i in range(N_BUCKETS)]
    rounding, clock = static(6, scheme, scales, -0.5)
    clock(None, (noise(3, 4),), {"timestep": torch.tensor([5, 75, 25])})
    assert clock.buckets.tolist() == [0, 7, 2]
    x = noise(3, 2, 4)
    for row, bucket in enumerate((0, 7, 2)):
        expected = fake_quantize(x[row], rounding.activation, torch.tensor(scales[bucket]), torch.tensor(-0.5))
        torch.testing.assert_close(rounding(x)[row], expected)
    # A layer that sees several rows for each of the call's has them side by side.
    six = noise(6, 4)
    torch.testing.assert_close(
        rounding(six)[2:4], fake_quantize(six[2:4], rounding.activation, torch.tensor(scales[7]), torch.tensor(-0.5))
    )


def test_a_clock_reads_the_timestep_wherever_it_stands():
    _, clock = static(8, "step", [1.0] * N_BUCKETS)
    clock(None, (noise(2, 4), torch.tensor(33.0)), {})
    assert clock.of(5).tolist() == [3] * 5
    clock(None, (noise(2, 4),), {"timestep": torch.tensor([33, 33])})
    assert clock.of(1).tolist() == [3]
    clock(None, (noise(2, 4),), {"timestep": torch.tensor([33, 63])})
    with pytest.raises(SedaqError, match="3 rows where the denoiser was called with 2 of different timesteps"):
        clock.of(3)
    with pytest.raises(InputError, match="no argument `timestep`"):
        Clock(nn.Linear(2, 2), (1.0,))


def test_ranges_become_parameters_once():
    rounding, _ = static(8, "step-affine", [1.0] * N_BUCKETS)
    assert not list(rounding.parameters()) and set(dict(rounding.named_buffers())) == {"ranges"}
    first = rounding.learnable()
    assert set(first) == {"ranges"} and all(p.requires_grad for p in first.values())
    assert all(rounding.learnable()[name] is p for name, p in first.items())


# -- on a model --------------------------------------------------------------------------------------------------------------------------


def test_attached_roundings_act_and_go(subject):
    names = {layer.name for layer in subject.layers[:3]}
    inputs = ActivationQuantizers({layer.name: Activation(4) for layer in subject.layers}).of(names)
    assert set(inputs.choices) == names
    x, t, c = noise(2, *subject.image_shape), torch.tensor([3, 50]), torch.tensor([0, 1])
    with torch.no_grad():
        exact = subject.denoiser(x, t, class_labels=c).sample
        with attached(subject.denoiser, *inputs.modules(subject.denoiser)):
            rounded = subject.denoiser(x, t, class_labels=c).sample
        again = subject.denoiser(x, t, class_labels=c).sample
    assert torch.equal(exact, again) and not torch.allclose(exact, rounded, atol=1e-4)
    by_hand = {name: module for name, module in subject.denoiser.named_modules() if name in names}
    assert all(not module._forward_pre_hooks for module in by_hand.values())


def test_windows_come_from_the_modules():
    model = nn.Sequential(nn.Conv2d(2, 2, (3, 1)), nn.Linear(3, 3))
    made, clock = ActivationQuantizers({"0": Activation(8), "1": Activation(8)}).modules(model)
    assert made["0"].window == (3, 1) and made["1"].window == () and clock is None
    x = noise(1, 2, 5, 4)
    wide = F.max_pool2d(F.pad(x.abs().amax(1, keepdim=True), (0, 0, 1, 1)), (3, 1), 1) / 127
    torch.testing.assert_close(made["0"](x), (x / wide).round() * wide, atol=1e-6, rtol=1e-5)


def test_the_fingerprint_is_of_all_that_rounding_depends_on():
    tensors = {"a": {"ranges": torch.zeros(1, N_BUCKETS)}}
    base = ActivationQuantizers({"a": Activation(8, "step")}, (1.0, 2.0), tensors)
    others = [
        dataclasses.replace(base, choices={"a": Activation(6, "step")}),
        dataclasses.replace(base, edges=(1.0, 3.0)),
        dataclasses.replace(base, tensors={"a": {"ranges": torch.ones(1, N_BUCKETS)}}),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert base.fingerprint == dataclasses.replace(base).fingerprint


def test_of_a_grouped_convolution_each_group_has_ranges_of_its_own():
    x = noise(2, 6, 5, 5) * torch.tensor([1.0, 1, 100, 100, 0.01, 0.01]).reshape(6, 1, 1)
    whole = ActivationQuantizer(Activation(8), (3, 3), 3)(x)
    for group in x.split(2, 1), whole.split(2, 1):
        assert len(group) == 3
    for part, rounded in zip(x.split(2, 1), whole.split(2, 1), strict=True):
        torch.testing.assert_close(rounded, ActivationQuantizer(Activation(8), (3, 3))(part))
    made, _ = ActivationQuantizers({"0": Activation(8)}).modules(nn.Sequential(nn.Conv2d(6, 6, 3, groups=3)))
    assert made["0"].groups == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_half_precision_stays_half_and_is_rounded_in_single(scheme, dtype):
    rounding = static(8, scheme, [0.02] * N_BUCKETS, -0.5)[0] if SCHEMES[scheme].static else ActivationQuantizer(Activation(8, scheme))
    x = noise(3, 16).to(dtype)
    x[1] = 0
    y = rounding(x)
    assert y.dtype == dtype and torch.isfinite(y).all()
    torch.testing.assert_close(y, rounding(x.float()).to(dtype), rtol=0, atol=0)


def test_ranges_keep_their_dtype_in_a_cast():
    rounding, _ = static(8, "step", [0.5] * N_BUCKETS)
    assert rounding.bfloat16().ranges.dtype == torch.float32


def test_what_is_simulated_at_8_bits_by_token_is_what_kernels_round():
    x = noise(4, 7, 24)
    torch.testing.assert_close(ActivationQuantizer(Activation(8))(x), dispatch.rounded(x), atol=1e-6, rtol=1e-5)
