"""One layer's parts of a step: its differentiable weight, and codes that move within bounds."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format
from sedaq.aq.tuning.code_steps import CODE_STEPS, none, pv, straight_through
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.tunable import TunableLayer

FAR = 1e9
CASES = [("1x4g4", (32, 24)), ("2x3g5", (32, 24)), ("1x4g4hq", (32, 24)), ("1x4g4m", (8, 6, 3, 3)), ("1x4g9t", (8, 6, 3, 3))]


# -- the weight --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "shape"), CASES)
def test_the_tunable_weight_is_the_stored_one_and_goes_back(text, shape, tunable, equal):
    layer = tunable(text, shape)
    torch.testing.assert_close(layer.weight(), layer.encoding.dequantize(), atol=1e-5, rtol=1e-5)
    assert equal(layer.encoded({}), layer.encoding)


def test_a_negative_scale_survives():
    encoding = encode(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), Format.parse("1x4g4"))
    scales = encoding.tensors["scales"] * torch.tensor([1.0, -1.0] * 4).half()
    negative = dataclasses.replace(encoding, tensors={**encoding.tensors, "scales": scales})
    torch.testing.assert_close(TunableLayer(negative).weight(), negative.dequantize(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("text", "shape"), CASES)
def test_gradients_of_the_tunable_weight(text, shape, tunable):
    layer = tunable(text, shape)
    target = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    (layer.weight() * target).sum().backward()
    step = 1e-2
    for parameter in (layer.stored, layer.log_scales):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append((layer.weight().double() * target).sum().item())
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=2e-3, abs=2e-2)


@pytest.mark.parametrize("text", ["1x4g4", "2x3g4m"])
def test_the_nearest_codes_are_nearest(text, tunable, monkeypatch):
    layer = tunable(text, (8, 8))
    row, group = torch.meshgrid(torch.arange(8), torch.arange(2), indexing="ij")
    row, group = row.flatten(), group.flatten()
    target = torch.randn(16, 4, generator=torch.Generator().manual_seed(4))
    codes, sums = layer.nearest(row, group, target, beam=64)
    books, scales = layer.books().detach(), layer.scales().detach()
    every = books[0] if len(books) == 1 else (books[0].unsqueeze(1) + books[1]).flatten(0, 1)
    best = (scales[row].reshape(-1, 1, 1) * every - target.unsqueeze(1)).square().sum(2).min(1).values
    torch.testing.assert_close((sums - target).square().sum(1), best, atol=1e-5, rtol=1e-5)
    words = sum(book[codes[:, m]] for m, book in enumerate(books))
    torch.testing.assert_close(sums, scales[row].unsqueeze(1) * words)
    monkeypatch.setattr("sedaq.aq.tuning.tunable.CHUNK", 5)
    assert torch.equal(layer.nearest(row, group, target, beam=64)[0], codes)


# -- steps of codes ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "shape"), CASES)
@pytest.mark.parametrize(("share", "trust"), [(0.02, 1e9), (0.3, 0.05), (1.0, 0.02)])
def test_a_v_step_keeps_within_its_bounds(text, shape, share, trust, tunable):
    layer = tunable(text, shape)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    settings = TuneConfig(code_share=share, trust_ratio=trust)
    for _ in range(3):
        codes, weight = layer.codes.clone(), layer.weight().detach()
        layer.want(weight, gradient, 1.0, 1.0)
        flips = pv(layer, settings)
        changed = (codes != layer.codes).any(2)
        assert changed.sum() == len(flips) <= max(1, int(share * changed.numel()))
        assert changed[flips.row, flips.group].all()
        assert torch.equal(flips.before, codes[flips.row, flips.group])
        assert torch.equal(flips.after, layer.codes[flips.row, flips.group])
        assert (layer.straight_through.change[flips.row, flips.group] == 0).all()
        assert (layer.weight() - weight).norm() <= trust * weight.norm() * (1 + 1e-5)


@pytest.mark.parametrize("step", [pv, straight_through])
def test_codes_go_against_the_gradient(step, tunable):
    layer = tunable("1x4g4")
    goal = torch.randn(32, 24, generator=torch.Generator().manual_seed(5))
    goal[3] = 0
    settings = TuneConfig(code_share=0.2, trust_ratio=0.5)
    distances = [(layer.weight() - goal).norm().item()]
    n_changed = 0
    for _ in range(10):
        weight = layer.weight().detach()
        layer.want(weight, weight - goal, 0.3, 1.0)
        n_changed += len(step(layer, settings))
        distances.append((layer.weight() - goal).norm().item())
    assert n_changed > 0 and distances[-1] < 0.9 * distances[0]


@pytest.mark.parametrize("text", ["1x4g4", "2x3g4", "3x4g6", "2x4g4h"])
@pytest.mark.parametrize("name", CODE_STEPS)
def test_without_a_gradient_no_code_moves(name, text, tunable):
    """Nor where the search, which is no exact one with several codebooks, finds codes that are further away."""
    layer = tunable(text)
    weight = layer.weight().detach()
    layer.want(weight, torch.zeros(32, 24), 1.0, 1.0)
    assert len(CODE_STEPS[name](layer, TuneConfig(code_share=1.0))) == 0
    assert torch.equal(layer.weight(), weight)


@pytest.mark.parametrize("step", [pv, straight_through])
def test_padded_groups_never_move(step, tunable):
    """Rows of 24 weights have a fifth group of 5 with one column too many."""
    layer = tunable("2x3g5")
    layer.want(layer.weight().detach(), torch.randn(32, 24, generator=torch.Generator().manual_seed(1)), 1.0, 1.0)
    flips = step(layer, TuneConfig(code_share=1.0, trust_ratio=FAR))
    assert len(flips) > 0 and not (flips.group == 4).any()


@pytest.mark.parametrize("step", [pv, straight_through])
def test_codes_that_move_come_nearer_to_what_they_want(step, tunable):
    layer = tunable("2x4g4")
    gradient = torch.randn(32, 24, generator=torch.Generator().manual_seed(1))
    dense = layer.weight().detach()
    layer.want(dense, gradient, 0.5, 1.0)
    weight = layer.grouped(dense)
    wanted = weight + layer.straight_through.change.float()
    flips = step(layer, TuneConfig(code_share=1.0, trust_ratio=FAR))
    now = layer.grouped(layer.weight().detach())
    before, after = ((x - wanted).square().sum(2)[flips.row, flips.group] for x in (weight, now))
    assert len(flips) > 20 and (after < before).all()


def test_a_flip_that_is_too_large_stands_in_nobodys_way(tunable):
    layer = tunable("1x4g4")
    gradient = torch.randn(32, 24, generator=torch.Generator().manual_seed(1))
    weight = layer.weight().detach()
    layer.want(weight, gradient, 1.0, 1.0)
    layer.straight_through.change[0, 0] = -4 * layer.grouped(weight)[0, 0]  # the largest buffer: over to the other side
    single = 0.5 * layer.grouped(weight).square().sum(2).mean() / weight.square().sum()
    flips = pv(layer, TuneConfig(code_share=1.0, trust_ratio=single.sqrt().item()))
    assert len(flips) > 0 and not ((flips.row == 0) & (flips.group == 0)).any()


def test_a_buffer_stays_until_its_group_moves(tunable):
    layer = tunable("1x4g4")
    weight = layer.weight().detach()
    for _ in range(8):
        layer.want(weight, torch.randn(32, 24, generator=torch.Generator().manual_seed(1)), 0.1, 1.0)
        before = layer.straight_through.change.clone()
        assert len(pv(layer, TuneConfig(trust_ratio=1e-9))) == 0
        assert torch.equal(layer.straight_through.change, before)


def test_straight_through_keeps_what_rounding_lost(tunable):
    """The latent weight, quantized weight plus buffer, stays the same whatever codes do."""
    layer = tunable("1x4g4")
    gradient = torch.randn(32, 24, generator=torch.Generator().manual_seed(1))
    n_flips = 0
    for _ in range(4):
        weight = layer.weight().detach()
        layer.want(weight, gradient, 0.3, 1.0)
        latent = layer.grouped(weight) + layer.straight_through.change.float()
        n_flips += len(straight_through(layer, TuneConfig()))
        now = layer.grouped(layer.weight().detach()) + layer.straight_through.change.float()
        torch.testing.assert_close(now, latent, atol=0.02, rtol=0.02)
        # Every code is the nearest to its latent weight, but for what rounding moved that by.
        row, group = torch.ones(32, 6).nonzero(as_tuple=True)
        _, nearest = layer.nearest(row, group, now[row, group], 1)
        chosen = layer.grouped(layer.weight().detach())[row, group]
        distances = [(sums - now[row, group]).norm(dim=1) for sums in (chosen, nearest)]
        torch.testing.assert_close(*distances, atol=0.02, rtol=0)
    assert n_flips > 20


def test_codebooks_alone(tunable):
    layer = tunable("1x4g4")
    codes = layer.codes.clone()
    layer.want(layer.weight(), torch.randn(32, 24), 10.0, 1.0)
    assert len(none(layer, TuneConfig(code_share=1.0))) == 0
    assert torch.equal(layer.codes, codes)
