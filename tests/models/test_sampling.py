"""Settings of sampling check themselves, conditions cycle, chunks report, and subjects hold samplers to their word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sedaq.errors import InputError
from sedaq.models.sampling import SamplingConfig, conditions_of, sample_in_chunks
from sedaq.models.subject import Subject
from sedaq.progress import Record, listening


def test_settings_that_are_none_do_not_appear(tmp_path: Path) -> None:
    assert SamplingConfig(steps=3).given == SamplingConfig().identity == {}
    (tmp_path / "negative.txt").write_text("a dog\n\n a mouse \n")
    sampling = SamplingConfig(steps=3, guidance=2.0, prompts=("a cat",), negative_prompts=str(tmp_path / "negative.txt"), batch_size=4)
    assert sampling.given == {"guidance": 2.0, "negative_prompts": ["a dog", "a mouse"], "batch_size": 4}
    assert sampling.identity == {"guidance": 2.0, "negative_prompts": ["a dog", "a mouse"]}, "batches change memory and speed alone"
    assert sampling.prompt_lines == ["a cat"] and SamplingConfig(prompts=["a", "b"]) == SamplingConfig(prompts=("a", "b"))  # type: ignore[arg-type]
    assert SamplingConfig.from_dict({"seed": 1, "steps": 3, "weighting": "uniform", "guidance": 2.0}) == SamplingConfig(3, 2.0)


@pytest.mark.parametrize(
    "field, value, text",
    [
        ("steps", 0, "`steps`: got 0; give a whole number of 1 or more"),
        ("batch_size", 2.5, "`batch_size`: got 2.5; give a whole number of 1 or more"),
        ("height", True, "`height`: got True; give a whole number of 1 or more"),
        ("guidance", float("nan"), "`guidance`: got nan; give a finite number"),
    ],
)
def test_wrong_settings_are_refused_by_name(field: str, value: object, text: str) -> None:
    with pytest.raises(InputError) as caught:
        SamplingConfig(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == text


def test_prompts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match=r"`prompts` .*absent.txt: cannot be read; give a text file"):
        _ = SamplingConfig(prompts=str(tmp_path / "absent.txt")).prompt_lines
    with pytest.raises(InputError, match=r"`negative_prompts` .*empty.txt: holds no prompts"):
        _ = SamplingConfig(negative_prompts=str(tmp_path / "empty.txt")).given


def test_a_subject_is_sampled_with_the_prompts_that_it_was_loaded_with() -> None:
    subject = Subject(nn.Linear(2, 2), sample=lambda **_: torch.zeros(1, 1, 1, 1), conditions=["a cat"], name="small")
    subject.sample(SamplingConfig(prompts=("a cat",)), seed=0, n_images=1)
    with pytest.raises(InputError, match="`prompts`: subject small has other conditions; load it with these prompts"):
        subject.sample(SamplingConfig(prompts=("a dog",)), seed=0, n_images=1)


def test_conditions_cycle_by_image_index() -> None:
    assert conditions_of([5, 6, 7], 0, 5) == [5, 6, 7, 5, 6]
    assert conditions_of([5, 6, 7], 4, 3) == [6, 7, 5]
    assert conditions_of(["a"], 3, 2) == ["a", "a"]
    assert conditions_of(None, 0, 3) is None and conditions_of([], 0, 3) is None


def test_chunks_report_images_done() -> None:
    records: list[Record] = []

    def sample(sampling: SamplingConfig, *, seed: int, start: int, n_images: int) -> torch.Tensor:
        return torch.arange(start, start + n_images).reshape(-1, 1, 1, 1)

    with listening(records.append):
        images = sample_in_chunks(sample, "sampling", SamplingConfig(), seed=0, n_images=7, start=2, chunk=3)
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


def test_prompts_are_lines_and_nothing_else_ends_one(tmp_path: Path) -> None:
    """A byte order mark is no part of a prompt; rarer separators are."""
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\r\n\na dog\u2028at sea\x0c!\n".encode())
    assert SamplingConfig(prompts=tmp_path / "prompts.txt").prompt_lines == ["a cat", "a dog\u2028at sea\x0c!"]
