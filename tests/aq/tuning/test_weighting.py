"""Weights of timesteps, against closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from sedaq.aq.tuning.weighting import GAMMA, WEIGHTINGS, Context, TimestepWeights
from sedaq.errors import InputError
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject
from sedaq.models.trace import Recording, ReplayBuffer

TIMES = torch.tensor([0.0, 5.0, 40.0, 99.0])


def recording(**changes) -> Recording:
    return Recording(**{"purpose": "tune", "n_images": 8, "sampling": SamplingConfig(steps=3), **changes})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_in_each_parametrisation(kind, subject):
    """An error of ε, of v and of x₀ that stand for one error of x₀ weigh the same: the weight times the squared factor between them."""
    subject.adapter.scheduler = DDIMScheduler(num_train_timesteps=100, prediction_type=kind)
    weights = WEIGHTINGS["min-snr"](Context(subject, recording()), TIMES)
    alphas = subject.adapter.scheduler.alphas_cumprod[TIMES.long()]
    snr = alphas / (1 - alphas)
    # x₀ = (x − √(1−ᾱ) ε) / √ᾱ = √ᾱ x − √(1−ᾱ) v
    factor = {"epsilon": (1 - alphas) / alphas, "v_prediction": 1 - alphas, "sample": torch.ones(4)}[kind]
    torch.testing.assert_close(weights, snr.clamp(max=GAMMA) * factor, rtol=1e-4, atol=1e-6)


def test_min_snr_needs_a_scheduler_that_knows(subject):
    subject.adapter.scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(InputError, match="prediction type 'flow_prediction' is unknown"):
        WEIGHTINGS["min-snr"](Context(subject, recording()), TIMES)
    subject.adapter.scheduler = None
    with pytest.raises(InputError, match="no scheduler with alphas_cumprod"):
        WEIGHTINGS["min-snr"](Context(subject, recording()), TIMES)


class _Echo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor, str]:
        return torch.ones_like(sample), "rest"


def test_sensitivity_is_the_squared_effect_on_the_image():
    """Images are Σ_t c_t ε_t, so that the weight of t is c_t²."""
    denoiser, effects = _Echo(), {9.0: 0.6, 4.0: 0.1, 1.0: 0.0}

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = torch.zeros(n_images, 1, 8, 8)
        return sum((c * denoiser(x, torch.full((n_images,), t))[0] for t, c in effects.items()), x)

    subject = Subject(denoiser, sample=sample, name="echo")
    times = torch.tensor(sorted(effects))
    weights = WEIGHTINGS["sensitivity"](Context(subject, recording()), times)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.01, 0.36]), rtol=1e-4, atol=1e-6)
    assert not denoiser._forward_hooks
    buffer = ReplayBuffer.record(subject, recording())
    rows = TimestepWeights("sensitivity", Context(subject, recording()), buffer)
    of_rows = rows.of(buffer, torch.arange(len(buffer)))
    assert of_rows.mean().item() == pytest.approx(1)
    expected = torch.tensor([effects[t] ** 2 for t in buffer.timesteps.tolist()])
    torch.testing.assert_close(of_rows, expected / expected.mean(), rtol=1e-4, atol=1e-6)


def test_sensitivity_of_a_real_sampler(subject):
    times = ReplayBuffer.record(subject, recording()).timesteps.unique()
    weights = WEIGHTINGS["sensitivity"](Context(subject, recording()), times)
    assert weights.shape == (3,) and (weights > 0).all() and torch.isfinite(weights).all()
    again = WEIGHTINGS["sensitivity"](Context(subject, recording()), times)
    assert torch.equal(weights, again)


def test_uniform_needs_no_timesteps(subject):
    buffer = ReplayBuffer.record(subject, recording())
    del buffer.tensors["timestep"]
    weights = TimestepWeights("uniform", Context(subject, recording()), buffer)
    assert torch.equal(weights.of(buffer, torch.arange(5)), torch.ones(5))
    with pytest.raises(InputError, match="no argument `timestep`"):
        TimestepWeights("min-snr", Context(subject, recording()), buffer)
