"""Calibrated ranges and the choice of layers, against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from sedaq.aq.activations import choice as choosing
from sedaq.aq.activations.calibration import RATIOS, calibrated, collected, fitted, record_calls, timestep_edges
from sedaq.aq.activations.choice import REAL_IS_WORTH, best_scheme, candidates, choose, chosen, measured
from sedaq.aq.activations.quantizer import N_BUCKETS, SCHEMES, Activation, fake_quantize
from sedaq.errors import InputError
from sedaq.models.sampling import SamplingConfig
from sedaq.models.trace import ReplayBuffer


@pytest.fixture
def buffer(subject) -> ReplayBuffer:
    return record_calls(subject, 0, SamplingConfig(steps=4))


# -- ranges ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8, 20])
def test_edges_lie_between_timesteps_and_part_them_evenly(n):
    timesteps = torch.arange(n).float().mul(7).repeat(3)
    edges = timestep_edges(timesteps)
    assert len(edges) == N_BUCKETS - 1 and list(edges) == sorted(edges)
    counts = torch.bincount(torch.bucketize(timesteps, torch.tensor(edges)), minlength=N_BUCKETS)
    if n >= N_BUCKETS:
        assert counts.max() - counts[counts > 0].min() <= 3 and (counts > 0).all()
    assert n == 1 or not set(edges) & set(timesteps.tolist())


@pytest.mark.parametrize("scheme", ["step", "step-affine"])
def test_ranges_have_the_least_error_of_those_tried(scheme):
    choice = Activation(4, scheme)
    rng = torch.Generator().manual_seed(0)
    values = {1: torch.randn(2000, generator=rng) ** 3, 6: torch.rand(2000, generator=rng) + 0.5}
    found = fitted(choice, values)
    for bucket, x in values.items():
        errors = []
        low, high = (min(0, x.min()), max(0, x.max())) if choice.is_affine else (0.0, x.abs().max())
        for ratio in RATIOS:
            width = ratio * (high - low)
            errors.append((fake_quantize(x, choice, width / choice.largest, ratio * low / width) - x).square().mean())
        shift = found["ranges"][1, bucket] if choice.is_affine else None
        ours = (fake_quantize(x, choice, found["ranges"][0, bucket].exp(), shift) - x).square().mean()
        torch.testing.assert_close(ours, torch.stack(errors).min(), rtol=1e-3, atol=1e-6)
    # Buckets that nothing fell into have their neighbours' ranges.
    of = [1, 1, 1, 1, 6, 6, 6, 6]
    assert all(torch.equal(found["ranges"][:, bucket], found["ranges"][:, of[bucket]]) for bucket in range(N_BUCKETS))


def test_values_are_collected_by_bucket(subject, buffer):
    name = subject.layers[0].name
    edges = timestep_edges(buffer.timesteps)
    values = collected(subject, {name}, edges, buffer)[name]
    assert len(values) == 4 and not subject.denoiser.get_submodule(name)._forward_pre_hooks
    buckets = torch.bucketize(buffer.timesteps, torch.tensor(edges))
    for bucket, x in values.items():
        seen = buffer.tensors["hidden_states"][buckets == bucket].float().flatten().unique()
        assert torch.isin(x, seen).all()


def test_static_schemes_need_a_timestep_and_dynamic_ones_no_ranges(subject, buffer):
    choices = {layer.name: Activation(8, "token") for layer in subject.layers}
    assert calibrated(subject, choices, buffer).tensors is None
    del buffer.tensors["timestep"]
    with pytest.raises(InputError, match="no argument `timestep`"):
        calibrated(subject, dict.fromkeys(choices, Activation(8, "step")), buffer)


# -- measuring ---------------------------------------------------------------------------------------------------------------------------


def test_damages_fall_with_bits_and_leave_no_trace(subject):
    choices = [Activation(bits, scheme) for scheme in SCHEMES for bits in (4, 6, 8)]
    damages = measured(subject, choices, sampling=SamplingConfig(steps=4))
    assert set(damages) == {layer.name for layer in subject.layers}
    for of in damages.values():
        for scheme in SCHEMES:
            four, six, eight = (of[Activation(bits, scheme)] for bits in (4, 6, 8))
            assert four > six > eight > 0
    assert not any(module._forward_pre_hooks for module in subject.denoiser.modules())
    assert measured(subject, choices[:1], sampling=SamplingConfig(steps=4)) == {
        name: {choices[0]: of[choices[0]]} for name, of in damages.items()
    }


def test_candidates():
    assert [(c.bits, c.scheme) for c in candidates(8, None, has_timestep=True)] == [(8, scheme) for scheme in SCHEMES]
    assert {c.bits for c in candidates(6, None, has_timestep=True)} == {6, 8}
    assert {c.scheme for c in candidates(6, None, has_timestep=False)} == {"token", "token-affine"}
    assert candidates(8, ["token"], has_timestep=True) == [Activation(8)]
    with pytest.raises(InputError, match="`activations` 5: choose 8 or 6"):
        candidates(5, None, has_timestep=True)
    with pytest.raises(InputError, match="scheme 'x' is unknown"):
        candidates(8, ["x"], has_timestep=True)


def test_the_best_scheme_prefers_what_kernels_compute_with():
    real, other = Activation(8, "token"), Activation(8, "step-affine")
    assert best_scheme({real: 3.9, other: 1.0}, 8) == real
    assert best_scheme({real: REAL_IS_WORTH + 0.1, other: 1.0}, 8) == other
    six = {Activation(6, "token"): 1.01, Activation(6, "step"): 1.0, real: 0.0}
    assert best_scheme(six, 6) == Activation(6, "step")


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_the_layers_that_are_raised_are_the_best_that_fit(bits, share):
    rng = torch.Generator().manual_seed(bits)
    names = [f"layer{i}" for i in range(9)]
    work = dict(zip(names, torch.randint(1, 1000, (9,), generator=rng).tolist(), strict=True))
    damages = {
        name: {Activation(6): d, Activation(8): d / 16}
        for name, d in zip(names, torch.rand(9, generator=rng).pow(4).mul(1e-7).tolist(), strict=True)
    }
    found = chosen(damages, work, bits, share)

    def total(raised: tuple[str, ...]) -> float:
        kept = {8: 0.0, 6: 1 / 16}[bits]
        return sum(damages[name][Activation(bits)] * (kept if name in raised else 1) for name in names)

    fits = [
        subset
        for n in range(10)
        for subset in itertools.combinations(names, n)
        if sum(work[name] for name in subset) <= share * sum(work.values())
    ]
    raised = tuple(name for name in names if (found[name].bits if name in found else 16) > bits)
    assert raised in fits
    assert total(raised) == pytest.approx(min(map(total, fits)), rel=1e-6)


def test_choices_are_kept_in_a_folder(subject, tmp_path, monkeypatch):
    first = choose(subject, 6, keep_in=tmp_path, sampling=SamplingConfig(steps=4))
    assert {choice.bits for choice in first.values()} <= {6, 8} and first
    monkeypatch.setattr(choosing, "measured", lambda *_, **__: pytest.fail("it is there"))
    assert choose(subject, 6, keep_in=tmp_path, sampling=SamplingConfig(steps=4)) == first
    with pytest.raises(pytest.fail.Exception):
        choose(subject, 8, keep_in=tmp_path, sampling=SamplingConfig(steps=4))


@pytest.mark.parametrize("scheme", [name for name, scheme in SCHEMES.items() if scheme.static])
def test_a_layer_that_is_never_called_has_a_range(scheme: str) -> None:
    """Its weight is read by another, as those of Hunyuan-DiT's pooler are."""
    choice = Activation(8, scheme)
    found = fitted(choice, {})
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        name: shape for name, (_, shape) in choice.tensor_specs().items()
    }
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
