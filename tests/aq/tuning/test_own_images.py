"""A user's images beside the model's trajectories."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerDiscreteScheduler, UniPCMultistepScheduler

from sedaq.aq.tuning.own_images import with_images
from sedaq.aq.tuning.trajectories import Trajectories
from sedaq.aq.tuning.tune import tune
from sedaq.errors import InputError
from sedaq.models.adapters.pipeline import encode_latents
from sedaq.models.sampling import SamplingConfig
from sedaq.models.trace import Recording, ReplayBuffer

IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def buffer(subject) -> ReplayBuffer:
    return ReplayBuffer.record(subject, Recording("tune", 8, sampling=SamplingConfig(steps=4)))


def test_every_call_comes_again_with_an_image_noised_to_its_timestep(subject, buffer):
    both, n = with_images(buffer, subject, IMAGES, 0), len(buffer)
    assert len(both) == 2 * n and sum(both.call_lengths) == 2 * n
    assert all(torch.equal(tensor[:n], buffer.tensors[name]) for name, tensor in both.tensors.items())
    for name in ("timestep", "class_labels"):
        assert torch.equal(both.tensors[name][n:], buffer.tensors[name])
    # The least noisy calls are nearly the images: x_t ≈ √ᾱ x₀ + √(1−ᾱ) ε.
    alphas = subject.scheduler.alphas_cumprod
    for row in range(n, 2 * n):
        alpha = alphas[int(both.timesteps[row])]
        residual = both.tensors["hidden_states"][row].float() - alpha.sqrt() * (2 * IMAGES - 1)
        size = residual.square().mean((1, 2, 3)).min() / (1 - alpha)
        assert 0.5 < size < 1.6, "what is left beside one of the images is noise of the right size"
    call, target = both.batch(torch.arange(n, 2 * n), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(subject.denoiser(**call).sample, target, atol=5e-3, rtol=5e-3)
    again = with_images(buffer, subject, IMAGES, 0)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in both.tensors.items())


def test_pipelines_with_a_vae_encode_images(subject):
    class Vae(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.config = SimpleNamespace(scaling_factor=0.5, shift_factor=1.0)

        def encode(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=3 * x))

    torch.testing.assert_close(encode_latents(Vae(), IMAGES), (3 * (2 * IMAGES - 1) - 1) * 0.5)


def test_tuning_with_images(subject, encodings, small):
    with_them, without = tune(subject, encodings, small, images=IMAGES), tune(subject, encodings, small)
    assert with_them.losses[0] == without.losses[0] and with_them.losses[-1] != without.losses[-1], (
        "they are not judged by, but learnt from"
    )
    assert with_them.best[1] < with_them.losses[0][1]


def test_refreshing_leaves_rows_of_own_images_alone(subject, small):
    trajectories = Trajectories(subject, small, images=IMAGES)
    n, before = len(trajectories.tuning) // 2, trajectories.tuning.tensors["hidden_states"].clone()
    for _ in range(5):
        trajectories.refresh(copy.deepcopy(subject.denoiser))
    after = trajectories.tuning.tensors["hidden_states"]
    assert torch.equal(after[n:], before[n:]) and not (after[:n] == before[:n]).flatten(1).all(1).any()


def test_schedulers_that_cannot_noise_images(subject, buffer):
    subject.adapter.scheduler = EulerDiscreteScheduler()
    with pytest.raises(InputError, match="EulerDiscreteScheduler.* cannot noise images"):
        with_images(buffer, subject, IMAGES, 0)
    subject.adapter.scheduler = UniPCMultistepScheduler(num_train_timesteps=100)
    with_images(buffer, subject, IMAGES, 0)  # whatever number of steps it was last set to
    with pytest.raises(InputError, match=r"they are \(1, 4, 4\) where the denoiser of .* takes \(1, 8, 8\)"):
        with_images(buffer, subject, IMAGES[:, :, :4, :4], 0)
    with pytest.raises(InputError, match="does not encode images"):
        encode_latents(SimpleNamespace(config=SimpleNamespace()), IMAGES)
    subject.adapter.scheduler = None
    with pytest.raises(InputError, match="NoneType"):
        with_images(buffer, subject, IMAGES, 0)
