"""The replay buffer: rows are the denoiser's own calls, they repeat, they are kept and renewed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from sedaq.aq.tuning.orders import ORDERS, jumps
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.trajectories import Trajectories
from sedaq.errors import InputError
from sedaq.models.loading import load
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject
from sedaq.models.trace import Recording, ReplayBuffer, with_first_tensor

EIGHT = Recording("tune", 8, sampling=SamplingConfig(steps=3))
CPU = torch.device("cpu")


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
    assert not torch.equal(first.tensors["output"], other.tensors["output"])


def test_refreshing_drops_the_oldest_and_gives_what_a_recording_from_there_gives(subject):
    settings = TuneConfig(n_images=8, sampling_steps=3)
    trajectories = Trajectories(subject, settings)
    for n in range(1, 7):
        trajectories.refresh()
        fresh = ReplayBuffer.record(subject, dataclasses.replace(EIGHT, start=2 * n))
        assert same(trajectories.tuning, fresh), n
        resumed = Trajectories(subject, settings)
        resumed.refresh_until(n)
        assert same(resumed.tuning, fresh) and resumed.n_refreshes == n
    assert len(trajectories.held_out) == 4 * 3
    held_out, tuning = (buffer.tensors["hidden_states"].flatten(1) for buffer in (trajectories.held_out, trajectories.tuning))
    assert torch.cdist(held_out.float(), tuning.float()).min() > 0.1, "what is held out is on no trajectory that is tuned on"


# -- kept in a folder --------------------------------------------------------------------------------------------------------------------


def test_a_kept_buffer_is_read_back(subject, tmp_path, monkeypatch):
    path = tmp_path / "b.safetensors"
    first = ReplayBuffer.opened(path, subject, EIGHT)
    monkeypatch.setattr(ReplayBuffer, "record", lambda *_: pytest.fail("it is there"))
    again = ReplayBuffer.opened(path, subject, EIGHT)
    assert same(first, again) and again.fixed == first.fixed and again.call_lengths == first.call_lengths


def test_a_buffer_of_another_model_or_other_trajectories_is_refused(subject, blocks_folder, tmp_path):
    path = tmp_path / "b.safetensors"
    ReplayBuffer.opened(path, subject, EIGHT)
    other = load(blocks_folder)
    with pytest.raises(InputError, match=f"was recorded from {subject.name} .*, not from {other.name} .*pass another folder"):
        ReplayBuffer.opened(path, other, EIGHT)
    with pytest.raises(InputError, match=r"recorded with steps 3 where 4 is asked for"):
        ReplayBuffer.opened(path, subject, dataclasses.replace(EIGHT, sampling=SamplingConfig(steps=4)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="delete it"):
        ReplayBuffer.opened(path, subject, EIGHT)


# -- models that cannot be recorded ------------------------------------------------------------------------------------------------------


def test_a_denoiser_that_is_not_called_cannot_be_tuned():
    subject = Subject(nn.Linear(4, 4), sample=lambda *, n_images, **_: torch.zeros(n_images, 1, 2, 2), name="idle")
    with pytest.raises(InputError, match="did not call the denoiser"):
        ReplayBuffer.record(subject, EIGHT)


class _Numbered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: float, scale: float = 2.0) -> torch.Tensor:
        return self.layer(x) * t * scale


def test_numbers_that_differ_between_calls_are_refused():
    """A timestep that comes as a number has no row of its own: the last one would stand for all."""
    denoiser = _Numbered()

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = torch.ones(n_images, 4)
        for t in times:
            x = denoiser(x, t)
        return x.reshape(n_images, 1, 2, 2)

    subject = Subject(denoiser, sample=sample, name="numbered")
    times = [3.0, 3.0]
    buffer = ReplayBuffer.record(subject, EIGHT)
    assert len(buffer) == 16
    with pytest.raises(InputError, match="no argument `timestep`"):
        _ = buffer.timesteps
    times = [3.0, 2.0]
    with pytest.raises(InputError, match=r"argument 't'.*3\.0.*2\.0"):
        ReplayBuffer.record(subject, EIGHT)


class _Odd(nn.Module):
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
        return denoiser(x, **given).reshape(n_images, 1, 2, 2)

    return Subject(denoiser, sample=sample, name="odd")


def test_conditions_by_kwargs_are_kept_by_row():
    denoiser = _Odd()
    buffer = ReplayBuffer.record(sampled_with(denoiser, shift=lambda n: torch.rand(n, 4)), EIGHT)
    call, target = buffer.batch(torch.tensor([6, 1, 3]), CPU)
    assert set(call) == {"x", "shift"}
    torch.testing.assert_close(denoiser(**call), target, atol=5e-3, rtol=5e-3)


def test_what_cannot_be_replayed_is_refused():
    with pytest.raises(InputError, match="argument 'extras' is a collection of tensors"):
        ReplayBuffer.record(sampled_with(_Odd(), extras=[torch.zeros(2)]), EIGHT)
    with pytest.raises(InputError, match="in 16 bits; load it in float32"):
        ReplayBuffer.record(sampled_with(_Odd().bfloat16()), EIGHT)


# -- orders ------------------------------------------------------------------------------------------------------------------------------


def test_consecutive_batches_are_calls_as_they_came(subject):
    buffer = ReplayBuffer.record(subject, EIGHT)  # 4 parts of 2 images, 3 calls each
    rng = torch.Generator().manual_seed(0)
    rows = [ORDERS["consecutive"](buffer, step, 64, rng) for step in range(1, 14)]
    assert torch.equal(torch.cat(rows[:12]), torch.arange(24)) and torch.equal(rows[12], rows[0])
    assert all(len(buffer.timesteps[some].unique()) == 1 for some in rows)
    assert [step for step in range(1, 15) if jumps(buffer, "consecutive", step)] == [4, 7, 10, 13]
    assert len(ORDERS["consecutive"](buffer, 1, 1, rng)) == 1
    assert not any(jumps(buffer, "replay", step) for step in range(1, 15))


def test_replayed_batches_mix_timesteps_and_images(subject):
    buffer = ReplayBuffer.record(subject, EIGHT)
    rows = ORDERS["replay"](buffer, 1, 1000, torch.Generator().manual_seed(0))
    assert set(rows.tolist()) == set(range(24))
    assert torch.equal(rows, ORDERS["replay"](buffer, 5, 1000, torch.Generator().manual_seed(0)))


def test_other_answers_in_the_same_kind_of_output(subject):
    tensor, other = torch.zeros(2), torch.ones(2)
    assert torch.equal(with_first_tensor(tensor, other), other)
    changed = with_first_tensor((tensor, "rest"), other)
    assert torch.equal(changed[0], other) and changed[1] == "rest"
    output = subject.denoiser(torch.zeros(1, *subject.image_shape), torch.tensor([3]), class_labels=torch.tensor([0]))
    assert torch.equal(with_first_tensor(output, other).sample, other) and type(with_first_tensor(output, other)) is type(output)
