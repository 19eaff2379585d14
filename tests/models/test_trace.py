"""The replay buffer: rows are the denoiser's own calls, they repeat, and they are kept."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sedaq.errors import InputError
from sedaq.models.calls import OUTPUT, answer_of, with_answer
from sedaq.models.hooks import hooking
from sedaq.models.loading import load
from sedaq.models.noise import image_noise
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject
from sedaq.models.trace import Recording, ReplayBuffer
from sedaq.storage import save_tensors

EIGHT = Recording("tune", 8, sampling=SamplingConfig(steps=3))
CPU = torch.device("cpu")


@pytest.fixture
def subject(make_denoiser: Callable[..., Path]) -> Subject:
    return load(make_denoiser("dit"))


def same(a: ReplayBuffer, b: ReplayBuffer) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(t, b.tensors[name]) for name, t in a.tensors.items())


def test_rows_are_the_denoisers_own_calls_and_answers(subject):
    buffer = ReplayBuffer.record(subject, EIGHT)
    assert len(buffer) == 8 * 3 == sum(buffer.call_lengths)
    call, target = buffer.batch(torch.arange(len(buffer)), CPU)
    with torch.no_grad():
        torch.testing.assert_close(subject.denoiser(**call).sample, target, atol=5e-3, rtol=5e-3)  # kept in float16
    call, target = buffer.batch(torch.tensor([5]), CPU)
    with torch.no_grad():
        torch.testing.assert_close(subject.denoiser(**call).sample, target, atol=5e-3, rtol=5e-3)


def test_the_buffer_covers_all_timesteps_and_repeats(subject):
    first, again, other = (ReplayBuffer.record(subject, dataclasses.replace(EIGHT, seed=seed)) for seed in (0, 0, 1))
    assert len(first.timesteps.unique()) == 3
    assert same(first, again)
    assert not torch.equal(first.tensors[OUTPUT], other.tensors[OUTPUT])


# -- kept in a folder ----------------------------------------------------------------------------------------------------------------------


def test_a_kept_buffer_is_read_back(subject, tmp_path, monkeypatch):
    path = tmp_path / "b.safetensors"
    first = ReplayBuffer.opened(path, subject, EIGHT)
    monkeypatch.setattr(ReplayBuffer, "record", lambda *_: pytest.fail("it is there"))
    again = ReplayBuffer.opened(path, subject, EIGHT)
    assert same(first, again) and again.template == first.template and again.call_lengths == first.call_lengths


def test_a_buffer_of_another_model_or_other_trajectories_is_refused(subject, make_denoiser, tmp_path):
    path = tmp_path / "b.safetensors"
    ReplayBuffer.opened(path, subject, EIGHT)
    other = load(make_denoiser("unet", 10))
    with pytest.raises(InputError, match=f"was recorded from {subject.name} .*, not from {other.name} .*pass another folder"):
        ReplayBuffer.opened(path, other, EIGHT)
    with pytest.raises(InputError, match=r"recorded with steps 3 where 4 is asked for"):
        ReplayBuffer.opened(path, subject, dataclasses.replace(EIGHT, sampling=SamplingConfig(steps=4)))


def test_a_damaged_buffer_is_recorded_again(subject, tmp_path):
    path = tmp_path / "b.safetensors"
    first = ReplayBuffer.opened(path, subject, EIGHT)
    path.write_bytes(path.read_bytes()[:-100])
    for again in (ReplayBuffer.opened(path, subject, EIGHT), ReplayBuffer.opened(path, subject, EIGHT)):
        assert again.tensors.keys() == first.tensors.keys()
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_a_buffer_that_version_0_1_0_kept_is_read(subject: Subject, tmp_path: Path) -> None:
    """It kept arguments by name, those in dicts by "name/key", and no structure."""
    buffer = ReplayBuffer.record(subject, EIGHT)
    content = {"subject": {"name": subject.name, "fingerprint": subject.fingerprint}, "recording": EIGHT.to_dict()}
    tensors = {**buffer.tensors, "added/text": torch.ones(len(buffer), 2)}
    old = {**content, "fixed": {"return_dict": True}, "call_lengths": buffer.call_lengths}
    save_tensors(tmp_path / "b.safetensors", "replay", tensors, old)
    rows = torch.tensor([5, 2])
    call, target = ReplayBuffer.opened(tmp_path / "b.safetensors", subject, EIGHT).batch(rows, CPU)
    assert torch.equal(call.pop("added")["text"], torch.ones(2, 2)) and call.pop("return_dict") is True
    expected, expected_target = buffer.batch(rows, CPU)
    assert call.keys() == expected.keys() and all(torch.equal(call[name], expected[name]) for name in call)
    assert torch.equal(target, expected_target) and call["hidden_states"].dtype == torch.float32


# -- trees ---------------------------------------------------------------------------------------------------------------------------------


class Tree(nn.Module):
    """Takes what the denoisers of diffusers take, all at once: tuples, dicts, ids without a batch axis, None and objects."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, timestep, rotary=None, added=None, ids=None, mask=None, marker=None):  # type: ignore[no-untyped-def]
        assert mask is None and marker in (MARKER, "known") and isinstance(rotary, tuple) and rotary[1] == "half"
        shift = rotary[0].sum() + added["text"].mean(1, keepdim=True) + added["deep"]["sizes"][0][:, None]
        answer = (self.layer(x) * (1 + timestep.reshape(-1, 1)) + ids.to(x).sum() + shift).to(x)
        return {"sample": answer, "sounds": [2 * answer[:, :3], None]}


MARKER = object()


def tree_subject(dtype: torch.dtype = torch.float32, timestep: Callable[[float], torch.Tensor] = torch.tensor, **changes: Any) -> Subject:
    torch.manual_seed(0)
    denoiser = Tree().to(dtype)

    @torch.inference_mode()
    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None, batch_size: int = 8) -> torch.Tensor:
        images = []
        for first in range(start, start + n_images, batch_size):
            n = min(batch_size, start + n_images - first)
            x = image_noise(seed, first, n, (4,)).to(dtype)
            numbers = torch.arange(first, first + n, dtype=dtype)
            arguments = {
                "rotary": (torch.arange(8, dtype=dtype).reshape(4, 2), "half"),
                "added": {"text": image_noise(seed + 1, first, n, (6,)).to(dtype), "deep": {"sizes": [numbers]}},
                "ids": torch.arange(2 * 3).reshape(2, 3),
                "marker": MARKER,
            }
            for t in range(steps or 2, 0, -1):
                x = denoiser(x, timestep(float(t)), **{**arguments, **changes})["sample"] / 10
            images.append(x.float().sigmoid().reshape(n, 1, 2, 2))
        return torch.cat(images)

    return Subject(denoiser, sample=sample, name="tree")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("batch_size", [None, 1, 2])  # ids have 2 rows, the rotary tensor 4, as many as there are images in some calls
def test_trees_are_replayed_row_by_row(dtype: torch.dtype, batch_size: int | None) -> None:
    subject = tree_subject(dtype)
    recording = Recording("tune", 16, sampling=SamplingConfig(steps=3, batch_size=batch_size))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with hooking(subject.denoiser, after={"": lambda module, args, kwargs, output: seen.append((args[0], answer_of(output)))}):
        buffer = ReplayBuffer.record(subject, recording)
    seen = seen[2:]  # the first two calls find batch axes
    answers = torch.cat([answer for _, answer in seen])
    assert len(buffer) == 16 * 3 == len(answers) and answers.shape[1] == 4 + 3
    assert set(buffer.tensors) == {"x", "timestep", "added/text", "added/deep/sizes/0", OUTPUT}
    assert set(buffer.template.fixed) == {"rotary/0", "rotary/1", "ids", "marker"}
    rows = torch.randperm(len(buffer), generator=torch.Generator().manual_seed(0))[:7]
    call, target = buffer.batch(rows, CPU)
    assert isinstance(call["rotary"], tuple) and isinstance(call["added"]["deep"]["sizes"], list) and call["x"].dtype == dtype
    # 16 bits are kept as they are; more are kept in float16
    tolerance = {torch.bfloat16: 0.0, torch.float16: 0.0}.get(dtype, 1e-3)
    torch.testing.assert_close(target, answers[rows].float(), atol=tolerance, rtol=tolerance)
    call["x"].requires_grad_()  # what was recorded in inference mode takes part in backward passes
    found = answer_of(subject.denoiser(**call)).float()
    found.sum().backward()
    near = 2e-2 if dtype == torch.bfloat16 else 4e-3
    torch.testing.assert_close(found, target, atol=near, rtol=near)


def test_a_kept_buffer_of_trees_is_read_back(tmp_path: Path) -> None:
    subject = tree_subject()
    with pytest.raises(InputError, match="argument 'marker' is a object, which no file can hold"):
        ReplayBuffer.opened(tmp_path / "b.safetensors", subject, EIGHT)
    assert not (tmp_path / "b.safetensors").exists()
    subject = tree_subject(marker="known")
    first, again = (ReplayBuffer.opened(tmp_path / "b.safetensors", subject, EIGHT) for _ in range(2))
    for rows in (torch.tensor([3, 20]), torch.arange(5)):
        (ours, target), (theirs, same_target) = first.batch(rows, CPU), again.batch(rows, CPU)
        assert torch.equal(target, same_target)
        assert torch.equal(answer_of(subject.denoiser(**ours)), answer_of(subject.denoiser(**theirs)))
        assert isinstance(theirs["rotary"], tuple) and theirs["rotary"][1] == "half"


def test_a_timestep_of_one_number_stands_for_all_rows() -> None:
    for shape in ((), (1,)):
        buffer = ReplayBuffer.record(tree_subject(timestep=lambda t, shape=shape: torch.full(shape, t)), EIGHT)  # type: ignore[misc]
        assert buffer.timesteps.tolist() == 4 * [3.0, 3.0, 2.0, 2.0, 1.0, 1.0]


def test_what_cannot_be_replayed_is_refused() -> None:
    counter = itertools.count()

    class Counted(Odd):
        def forward(self, x, extras=None, **others):  # type: ignore[no-untyped-def]
            return super().forward(x)

    with pytest.raises(InputError, match="argument 'extras/0' is a tensor without a batch axis that differs between calls"):
        ReplayBuffer.record(sampled_with(Counted(), extras=lambda n: [torch.full((3,), next(counter))]), EIGHT)
    with pytest.raises(InputError, match="argument 'extras' has 4 rows for 2 images; such a denoiser cannot be replayed"):
        ReplayBuffer.record(sampled_with(Counted(), extras=lambda n: torch.zeros(2 * n)), EIGHT)
    with pytest.raises(InputError, match="calls differ in which arguments they have"):
        ReplayBuffer.record(sampled_with(Counted(), extras=lambda n: [None] * (next(counter) % 2)), EIGHT)
    with pytest.raises(InputError, match=r"takes arguments without names \(\*inputs\)"):
        ReplayBuffer.record(sampled_with(Unnamed()), EIGHT)


class Unnamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs[0])


# -- models that cannot be recorded --------------------------------------------------------------------------------------------------------


def test_a_denoiser_that_is_not_called_cannot_be_replayed():
    subject = Subject(nn.Linear(4, 4), sample=lambda *, n_images, **_: torch.zeros(n_images, 1, 2, 2), name="idle")
    with pytest.raises(InputError, match="did not call the denoiser"):
        ReplayBuffer.record(subject, EIGHT)


class Numbered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: float, scale: float = 2.0) -> torch.Tensor:
        return self.layer(x) * t * scale


def test_numbers_that_differ_between_calls_are_refused():
    """A timestep that comes as a number has no row of its own: the last one would stand for all."""
    denoiser = Numbered()

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = torch.ones(n_images, 4)
        for t in times:
            x = denoiser(x, t)
        return x.sigmoid().reshape(n_images, 1, 2, 2)

    subject = Subject(denoiser, sample=sample, name="numbered")
    times = [3.0, 3.0]
    buffer = ReplayBuffer.record(subject, EIGHT)
    assert len(buffer) == 16
    with pytest.raises(InputError, match="no argument `timestep`"):
        _ = buffer.timesteps
    times = [3.0, 2.0]
    with pytest.raises(InputError, match=r"argument 't'.*3\.0.*2\.0"):
        ReplayBuffer.record(subject, EIGHT)


class Odd(nn.Module):
    """Gets its condition by **kwargs, or a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, extras: object = None, **others: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + others.get("shift", 0)


def sampled_with(denoiser: nn.Module, **arguments: object) -> Subject:
    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = torch.rand(n_images, 4, generator=torch.Generator().manual_seed(seed + start)).to(next(denoiser.parameters()))
        given = {name: value(n_images) if callable(value) else value for name, value in arguments.items()}
        return denoiser(x, **given).sigmoid().reshape(n_images, 1, 2, 2)

    return Subject(denoiser, sample=sample, name="odd")


def test_conditions_by_kwargs_are_kept_by_row():
    denoiser = Odd()
    buffer = ReplayBuffer.record(sampled_with(denoiser, shift=lambda n: torch.rand(n, 4)), EIGHT)
    call, target = buffer.batch(torch.tensor([6, 1, 3]), CPU)
    assert set(call) == {"x", "shift"}
    torch.testing.assert_close(denoiser(**call), target, atol=5e-3, rtol=5e-3)


# -- answers -------------------------------------------------------------------------------------------------------------------------------


def test_other_answers_in_the_same_kind_of_output(subject: Subject) -> None:
    tensor, other = torch.zeros(2), torch.ones(2)
    assert torch.equal(with_answer(tensor, other), other)
    changed = with_answer((tensor, "rest"), other)
    assert torch.equal(changed[0], other) and changed[1] == "rest"
    output = subject.denoiser(torch.zeros(1, *subject.image_shape), torch.tensor([3]), class_labels=torch.tensor([0]))
    assert torch.equal(with_answer(output, other).sample, other) and type(with_answer(output, other)) is type(output)


def test_several_answers_are_one_and_are_put_back() -> None:
    output = {
        "video": torch.ones(2, 3, 4),
        "mask": torch.ones(2, 5, dtype=torch.bool),
        "sound": (torch.zeros(2, 5), None),
        "loss": torch.ones(()),
    }
    answer = answer_of(output)
    assert answer.shape == (2, 12 + 5) and answer[:, 12:].abs().max() == 0
    changed = with_answer(output, answer + 1)
    assert changed["video"].shape == (2, 3, 4) and bool((changed["video"] == 2).all()) and bool((changed["sound"][0] == 1).all())
    assert changed["mask"] is output["mask"] and changed["sound"][1] is None
    with pytest.raises(InputError, match="holds no floating-point tensor"):
        answer_of((None, "nothing"))
