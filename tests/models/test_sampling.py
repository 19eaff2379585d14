"""Paired sampling: image i is the same whatever is sampled beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sedaq.errors import InputError
from sedaq.models.loading import load
from sedaq.models.sampling import DenoiserSampler, conditions_of, sample_in_chunks
from sedaq.models.subject import Subject
from sedaq.progress import Record, listening

TOLERANCE = 1e-4  # promised: batch sizes change the order of sums


def test_conditions_cycle_by_image_index() -> None:
    assert conditions_of([5, 6, 7], 0, 5) == [5, 6, 7, 5, 6]
    assert conditions_of([5, 6, 7], 4, 3) == [6, 7, 5]
    assert conditions_of(["a"], 3, 2) == ["a", "a"]
    assert conditions_of(None, 0, 3) is None and conditions_of([], 0, 3) is None


@pytest.mark.parametrize("kind, scheduler", [("unet", "ddim"), ("dit", "ddim"), ("dit", "ddpm")])
def test_images_are_equal_across_batches_starts_and_chunks(make_denoiser: Callable[..., Path], kind: str, scheduler: str) -> None:
    subject = load(make_denoiser(kind, 3, scheduler=scheduler))
    whole = subject.sample(seed=4, n_images=7, steps=2)
    assert whole.shape == (7, 1, 8, 8) and whole.dtype == torch.float32
    assert whole.min() >= 0 and whole.max() <= 1 and whole.std() > 0.01
    assert (whole[0] - whole[1]).abs().max() > 0.01
    for batch_size in (1, 3):
        torch.testing.assert_close(subject.sample(seed=4, n_images=7, steps=2, batch_size=batch_size), whole, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(subject.sample(seed=4, start=3, n_images=4, steps=2), whole[3:], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(sample_in_chunks(subject.sample, "x", seed=4, n_images=7, chunk=2, steps=2), whole, atol=TOLERANCE, rtol=0)
    assert subject.sample(seed=4, n_images=7, steps=2).equal(whole)
    assert (subject.sample(seed=5, n_images=7, steps=2) - whole).abs().max() > 0.01


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
    sampler = DenoiserSampler(denoiser, Identity(), [0, 1], None, default_steps=3)
    images = sampler(seed=0, start=1, n_images=5, batch_size=2)
    assert denoiser.calls == [(t, labels) for labels in ([1, 0], [1, 0], [1]) for t in (3.0, 2.0, 1.0)]
    # [-1, 1] to [0, 1]; of the output's two channels the first is the mean, the other a variance
    assert images.shape == (5, 1, 4, 4) and images[:, 0, 0, 0].tolist() == [1.0, 0.5, 1.0, 0.5, 1.0]


def test_guidance_extrapolates_from_the_null_class() -> None:
    denoiser = Recorder()
    sampler = DenoiserSampler(denoiser, Identity(), [1], -1, default_steps=1)
    # null + w · (class − null) = −1 + 0.75 · 2
    assert sampler(seed=0, start=0, n_images=1, guidance=0.75)[0, 0, 0, 0] == pytest.approx(0.75)
    assert denoiser.calls == [(1.0, [-1, 1])]


def test_guidance_without_a_null_class_is_refused(make_denoiser: Callable[..., Path], unconditional_pipeline: Path) -> None:
    with pytest.raises(InputError, match="`guidance`: this denoiser has no null class"):
        load(make_denoiser("unet", 3)).sample(seed=0, n_images=1, steps=1, guidance=2.0)
    with pytest.raises(InputError, match="`guidance`: DDIMPipeline takes no guidance"):
        load(unconditional_pipeline).sample(seed=0, n_images=1, steps=1, guidance=2.0)


def test_pipelines_are_paired_too(unconditional_pipeline: Path, class_pipeline: Path) -> None:
    for folder, settings in ((unconditional_pipeline, {}), (class_pipeline, {"guidance": 1.0})):
        subject = load(folder)
        whole = subject.sample(seed=1, n_images=5, steps=2, **settings)
        assert whole.shape[:2] == (5, subject.image_shape[0]) and whole.min() >= 0 and whole.max() <= 1
        apart = subject.sample(seed=1, start=2, n_images=3, steps=2, batch_size=1, **settings)
        torch.testing.assert_close(apart, whole[2:], atol=TOLERANCE, rtol=0)
        assert (whole[0] - whole[1]).abs().max() > 0.01


def test_chunks_report_images_done() -> None:
    records: list[Record] = []

    def sample(*, seed: int, start: int, n_images: int) -> torch.Tensor:
        return torch.arange(start, start + n_images).reshape(-1, 1, 1, 1)

    with listening(records.append):
        images = sample_in_chunks(sample, "sampling", seed=0, n_images=7, start=2, chunk=3)
    assert images.flatten().tolist() == list(range(2, 9))
    assert [(r.done, r.total) for r in records] == [(0, 7), (3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("shape", [(3, 1, 4), (2, 1, 4, 4)])
def test_a_sampler_that_returns_something_else_is_refused(shape: tuple[int, ...]) -> None:
    subject = Subject(nn.Linear(2, 2), sample=lambda **_: torch.zeros(shape), name="odd")
    with pytest.raises(InputError, match=r"subject odd: its sample function gave shape .*must give \(3, C, H, W\)"):
        subject.sample(seed=0, n_images=3)


def test_replaced_weights_are_put_back_even_when_the_block_fails() -> None:
    denoiser = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    subject = Subject(denoiser, sample=lambda **_: torch.zeros(1, 1, 1, 1), name="small")
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), subject.weights_replaced({"1": torch.ones(2, 2)}):
        assert denoiser[1].weight.equal(torch.ones(2, 2)) and denoiser[0].weight.equal(before["0.weight"])
        raise RuntimeError("stop")
    assert all(tensor.equal(before[name]) for name, tensor in denoiser.state_dict().items())
