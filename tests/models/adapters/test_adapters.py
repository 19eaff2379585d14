"""Paired sampling: image i is the same whatever is sampled beside it, and settings that a model does not take are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput
from torch import nn

from sedaq.errors import InputError
from sedaq.models.adapters.base import FunctionAdapter
from sedaq.models.adapters.denoiser import DenoiserAdapter
from sedaq.models.adapters.pipeline import PipelineAdapter, pictures, spectrograms
from sedaq.models.loading import load
from sedaq.models.sampling import SamplingConfig, sample_in_chunks

TOLERANCE = 1e-4  # promised: batch sizes change the order of sums
TWO_STEPS = SamplingConfig(steps=2)


@pytest.mark.parametrize("kind, scheduler", [("unet", "ddim"), ("dit", "ddim"), ("dit", "ddpm"), ("unet", "flow")])
def test_images_are_equal_across_batches_starts_and_chunks(make_denoiser: Callable[..., Path], kind: str, scheduler: str) -> None:
    subject = load(make_denoiser(kind, 3, scheduler=scheduler))
    whole = subject.sample(TWO_STEPS, seed=4, n_images=7)
    assert whole.shape == (7, 1, 8, 8) and whole.dtype == torch.float32
    assert whole.min() >= 0 and whole.max() <= 1 and whole.std() > 0.01
    assert (whole[0] - whole[1]).abs().max() > 0.01
    for batch_size in (1, 3):
        torch.testing.assert_close(
            subject.sample(SamplingConfig(steps=2, batch_size=batch_size), seed=4, n_images=7), whole, atol=TOLERANCE, rtol=0
        )
    torch.testing.assert_close(subject.sample(TWO_STEPS, seed=4, start=3, n_images=4), whole[3:], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(sample_in_chunks(subject.sample, "x", TWO_STEPS, seed=4, n_images=7, chunk=2), whole, atol=TOLERANCE, rtol=0)
    assert subject.sample(TWO_STEPS, seed=4, n_images=7).equal(whole)
    assert (subject.sample(TWO_STEPS, seed=5, n_images=7) - whole).abs().max() > 0.01


class Recorder(nn.Module):
    """A denoiser that notes what it is asked, and answers with the class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"sample_size": 4, "in_channels": 1})
        self.calls: list[tuple[float, list[int]]] = []

    def forward(self, x, t, class_labels=None):
        self.calls.append((float(t[0]), class_labels.tolist()))
        return type("Output", (), {"sample": class_labels.float().reshape(-1, 1, 1, 1).expand(-1, 2, 4, 4)})


class Identity:
    """A scheduler whose last step returns the denoiser's output."""

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.arange(steps, 0, -1)

    def scale_model_input(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x

    def step(self, output: torch.Tensor, t: torch.Tensor, x: torch.Tensor):
        return type("Step", (), {"prev_sample": output})


def test_every_image_gets_its_class_at_every_step() -> None:
    denoiser = Recorder()
    adapter = DenoiserAdapter(denoiser, Identity(), [0, 1], None, default_steps=3)
    images = adapter.sample(SamplingConfig(batch_size=2), seed=0, start=1, n_images=5)
    assert denoiser.calls == [(t, labels) for labels in ([1, 0], [1, 0], [1]) for t in (3.0, 2.0, 1.0)]
    # [-1, 1] to [0, 1]; of the output's two channels the first is the mean, the other a variance
    assert images.shape == (5, 1, 4, 4) and images[:, 0, 0, 0].tolist() == [1.0, 0.5, 1.0, 0.5, 1.0]


def test_guidance_extrapolates_from_the_null_class() -> None:
    denoiser = Recorder()
    adapter = DenoiserAdapter(denoiser, Identity(), [1], -1, default_steps=1)
    # null + w · (class − null) = −1 + 0.75 · 2
    assert adapter.sample(SamplingConfig(guidance=0.75), seed=0, start=0, n_images=1)[0, 0, 0, 0] == pytest.approx(0.75)
    assert denoiser.calls == [(1.0, [-1, 1])]


def test_guidance_without_a_null_class_is_refused(make_denoiser: Callable[..., Path], unconditional_pipeline: Path) -> None:
    with pytest.raises(InputError, match="`guidance`: this denoiser has no null class"):
        load(make_denoiser("unet", 3)).sample(SamplingConfig(steps=1, guidance=2.0), seed=0, n_images=1)
    with pytest.raises(InputError, match="`guidance`: DDIMPipeline takes no guidance"):
        load(unconditional_pipeline).sample(SamplingConfig(steps=1, guidance=2.0), seed=0, n_images=1)


def test_pipelines_are_paired_too(unconditional_pipeline: Path, class_pipeline: Path) -> None:
    for folder, sampling in ((unconditional_pipeline, TWO_STEPS), (class_pipeline, SamplingConfig(steps=2, guidance=1.0))):
        subject = load(folder)
        whole = subject.sample(sampling, seed=1, n_images=5)
        assert whole.shape[:2] == (5, subject.image_shape[0]) and whole.min() >= 0 and whole.max() <= 1
        apart = subject.sample(replace(sampling, batch_size=1), seed=1, start=2, n_images=3)
        torch.testing.assert_close(apart, whole[2:], atol=TOLERANCE, rtol=0)
        assert (whole[0] - whole[1]).abs().max() > 0.01


class TextPipeline:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def __call__(self, prompt=None, height=None, width=None, num_inference_steps=50, guidance_scale=7.5, negative_prompt=None, **others):  # type: ignore[no-untyped-def]
        assert others.pop("output_type") == "np" and len(others.pop("generator")) == len(prompt) and not others
        self.calls.append(
            {"prompt": prompt, "steps": num_inference_steps, "w": guidance_scale, "negative": negative_prompt, "size": (height, width)}
        )
        return SimpleNamespace(images=np.zeros((len(prompt), 2, 2, 3), np.float32))


def test_settings_reach_the_arguments_of_a_pipeline() -> None:
    pipeline = TextPipeline()
    adapter = PipelineAdapter(pipeline, ["a", "b", "c"])
    adapter.sample(SamplingConfig(), seed=0, start=0, n_images=1)
    sampling = SamplingConfig(3, 2.0, height=8, width=16, negative_prompts=("x", "y"), batch_size=2)
    assert adapter.sample(sampling, seed=0, start=1, n_images=3).shape == (3, 3, 2, 2)
    assert pipeline.calls == [
        {"prompt": ["a"], "steps": 50, "w": 7.5, "negative": None, "size": (None, None)},
        {"prompt": ["b", "c"], "steps": 3, "w": 2.0, "negative": ["y", "x"], "size": (8, 16)},
        {"prompt": ["a"], "steps": 3, "w": 2.0, "negative": ["y"], "size": (8, 16)},
    ]
    with pytest.raises(InputError, match="`n_frames`: TextPipeline takes no n_frames; leave `n_frames` out"):
        adapter.sample(SamplingConfig(n_frames=4), seed=0, start=0, n_images=1)


def test_a_bare_denoiser_has_a_size_of_its_own(make_denoiser: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="`height`: a bare denoiser takes no height; leave `height` out"):
        load(make_denoiser("unet")).sample(SamplingConfig(height=16), seed=0, n_images=1)
    with pytest.raises(InputError, match="`guidance`: this denoiser has no null class"):
        load(make_denoiser("unet")).sample(SamplingConfig(guidance=2.0), seed=0, n_images=1)


def test_a_users_function_gets_what_was_given_by_name() -> None:
    seen: list[dict[str, Any]] = []

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None, guidance: float | None = None) -> torch.Tensor:
        seen.append({"seed": seed, "start": start, "steps": steps, "guidance": guidance})
        return torch.zeros(n_images, 1, 2, 2)

    adapter = FunctionAdapter(sample)
    adapter.sample(SamplingConfig(), seed=1, start=2, n_images=1)
    adapter.sample(SamplingConfig(steps=3, guidance=0.5), seed=1, start=2, n_images=1)
    assert seen == [{"seed": 1, "start": 2, "steps": None, "guidance": None}, {"seed": 1, "start": 2, "steps": 3, "guidance": 0.5}]
    with pytest.raises(InputError, match="`width`: the sample function takes no width; leave `width` out"):
        adapter.sample(SamplingConfig(width=8), seed=1, start=0, n_images=1)


def test_a_function_that_wants_what_it_is_not_given() -> None:
    def greedy(*, seed: int, start: int, n_images: int, noise: float, steps: int | None = None) -> torch.Tensor:
        raise AssertionError("it is not called")

    def stepless(*, seed: int, start: int, n_images: int) -> torch.Tensor:
        raise AssertionError("it is not called")

    for function, what in ((greedy, "missing a required argument: 'noise'"), (stepless, "unexpected keyword argument 'steps'")):
        with pytest.raises(
            InputError, match=f"the sample function cannot be called with seed, start, n_images, steps: .*{what}; it must take these"
        ):
            FunctionAdapter(function).sample(SamplingConfig(), seed=0, start=0, n_images=1)


def test_errors_inside_of_a_function_stay_its_own() -> None:
    def broken(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        raise TypeError("unsupported operand")

    with pytest.raises(TypeError, match="unsupported operand"):
        FunctionAdapter(broken).sample(SamplingConfig(), seed=0, start=0, n_images=1)


class Decoder(TextPipeline):
    """Begins with what another pipeline made."""

    def __call__(self, image_embeds, prompt=None, generator=None, output_type="pil"):  # type: ignore[no-untyped-def]
        raise AssertionError("it is not called")


def test_a_pipeline_that_wants_what_it_is_not_given() -> None:
    with pytest.raises(
        InputError,
        match="Decoder cannot be called with generator, prompt, output_type: missing a required argument: 'image_embeds'; wrap it",
    ):
        PipelineAdapter(Decoder(), ["a"]).sample(SamplingConfig(), seed=0, start=0, n_images=1)


# -- outputs -----------------------------------------------------------------------------------------------------------------------------


def test_what_pipelines_return_becomes_tensors() -> None:
    rng = np.random.default_rng(0)
    images, frames = rng.random((2, 4, 5, 3)), [rng.random((6, 4, 5, 3)) for _ in range(2)]
    found = pictures(BaseOutput(images=images), "P")
    assert found.shape == (2, 3, 4, 5) and found[1, 2, 3, 4].item() == pytest.approx(images[1, 3, 4, 2])
    videos = pictures(BaseOutput(frames=frames), "P")
    assert videos.shape == (2, 6, 3, 4, 5) and videos[1, 5, 0, 1, 2].item() == pytest.approx(frames[1][5, 1, 2, 0])
    with pytest.raises(InputError, match="P makes image_embeds, no images, videos or sound"):
        pictures(BaseOutput(image_embeds=images), "P")


def test_the_spectrogram_of_a_tone() -> None:
    """A sine of full scale is 0 dB in its own band and near −100 dB far from it; half the amplitude is 6 dB less."""
    n, band = 4096, 100
    tone = torch.sin(2 * torch.pi * band / 1024 * torch.arange(n)).reshape(1, 1, n).repeat(1, 2, 1)
    found = spectrograms(torch.cat([tone, tone / 2]))
    middle = found.shape[-1] // 2
    assert found.shape[:2] == (2, 1) and found[0, 0, :, middle].argmax().item() == band
    assert found[0, 0, band, middle].item() == pytest.approx(1.0, abs=0.01)
    assert (found[0, 0, band, middle] - found[1, 0, band, middle]).item() == pytest.approx(0.0602, abs=1e-3)
    assert found[0, 0, 400, middle].item() < 0.1


# -- checks before work ------------------------------------------------------------------------------------------------------------------


def test_more_steps_than_there_are_timesteps(make_denoiser: Callable[..., Path]) -> None:
    subject = load(make_denoiser("unet"))
    with pytest.raises(InputError, match="`steps`: got 1001; unet was trained on 1000 timesteps"):
        subject.check(SamplingConfig(steps=1001))
    subject.check(SamplingConfig(steps=1000))
