"""Trajectories are renewed, and rows come in an order."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from sedaq.aq.tuning.orders import ORDERS, jumps
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.trajectories import Trajectories
from sedaq.errors import InputError
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject
from sedaq.models.trace import Recording, ReplayBuffer

EIGHT = Recording("tune", 8, sampling=SamplingConfig(steps=3))


def same(a: ReplayBuffer, b: ReplayBuffer) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(t, b.tensors[name]) for name, t in a.tensors.items())


def harmed(subject: Subject) -> nn.Module:
    """A student that answers as the teacher does, but for weights that have errors of a tenth."""
    student = copy.deepcopy(subject.denoiser)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=rng))
    return student


def test_what_is_recorded_of_a_student_are_its_trajectories_with_the_teachers_answers(subject):
    student, recording = harmed(subject), dataclasses.replace(EIGHT, n_images=4)
    found = ReplayBuffer.record(subject, recording, n_parts=1, student=student)
    teachers = ReplayBuffer.record(subject, recording, n_parts=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subject.denoiser, "forward", student.forward)
        students = ReplayBuffer.record(subject, recording, n_parts=1)
    inputs = [buffer.tensors["hidden_states"] for buffer in (found, students, teachers)]
    assert torch.equal(inputs[0], inputs[1]) and torch.equal(inputs[0][:4], inputs[2][:4]) and not torch.equal(inputs[0][4:], inputs[2][4:])
    call, target = found.batch(torch.arange(len(found)), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(subject.denoiser(**call).sample, target, atol=5e-3, rtol=5e-3)
    assert all(torch.equal(found.tensors[name], students.tensors[name]) for name in ("timestep", "class_labels"))


def test_refreshing_puts_the_students_trajectories_in_the_place_of_the_oldest(subject, tmp_path):
    settings, student = TuneConfig(n_images=8, sampling_steps=3), harmed(subject)
    trajectories, rows = Trajectories(subject, settings), 2 * 3
    before = {name: tensor.clone() for name, tensor in trajectories.tuning.tensors.items()}
    for n in range(6):
        trajectories.refresh(student, tmp_path)
        recording = dataclasses.replace(EIGHT, purpose="tune student", n_images=2, start=2 * n)
        newer, place = ReplayBuffer.record(subject, recording, n_parts=1, student=student), n % 4
        for name, tensor in trajectories.tuning.tensors.items():
            assert torch.equal(tensor[place * rows : (place + 1) * rows], newer.tensors[name]), (n, name)
            if n < 3:
                assert torch.equal(tensor[(n + 1) * rows :], before[name][(n + 1) * rows :]), "others stay"
        resumed = Trajectories(subject, settings)
        resumed.restore(n + 1, tmp_path)
        assert same(resumed.tuning, trajectories.tuning) and resumed.n_refreshes == n + 1
    trajectories.forget(tmp_path, all_parts=False)
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["2", "3", "4", "5"], "what is replaced is of no use"
    trajectories.forget(tmp_path, all_parts=True)
    assert not list(tmp_path.glob("*.safetensors"))
    assert len(trajectories.held_out) == 4 * 3
    held_out, tuning = (buffer.tensors["hidden_states"].flatten(1) for buffer in (trajectories.held_out, trajectories.tuning))
    assert torch.cdist(held_out.float(), tuning.float()).min() > 0.1, "what is held out is on no trajectory that is tuned on"


def test_rows_that_overflow_leave_what_was_there(subject):
    buffer, newer = (ReplayBuffer.record(subject, dataclasses.replace(EIGHT, n_images=n), n_parts=n // 2) for n in (8, 2))
    before, own = (kept.tensors["hidden_states"].clone() for kept in (buffer, newer))
    newer.tensors["hidden_states"][1] = float("inf")
    newer.tensors["output"][4] = float("nan")
    buffer.mend(newer, 1)
    buffer.replace(newer, 1)
    for row in range(6):
        assert torch.equal(buffer.tensors["hidden_states"][6 + row], before[6 + row] if row in (1, 4) else own[row])
    assert all(torch.equal(tensor[6:12], newer.tensors[name]) for name, tensor in buffer.tensors.items())


def test_rows_that_overflowed_are_as_they_were_when_a_tuning_goes_on(subject, tmp_path):
    """The sixth refresh leaves a row of the second one, which is no longer kept."""
    settings, student, record = TuneConfig(n_images=8, sampling_steps=3), harmed(subject), ReplayBuffer.record

    def overflowing(*what, **how):
        part = record(*what, **how)
        if how.get("student") is not None and trajectories.n_refreshes == 5:
            part.tensors["output"][2] = float("nan")
        return part

    trajectories = Trajectories(subject, settings)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ReplayBuffer, "record", overflowing)
        for _ in range(5):
            trajectories.refresh(student, tmp_path)
        second = trajectories.tuning.tensors["output"][6:12].clone()
        trajectories.refresh(student, tmp_path)
    sixth = trajectories.tuning.tensors["output"][6:12]
    assert torch.equal(sixth[2], second[2]) and not torch.equal(sixth[3], second[3])
    resumed = Trajectories(subject, settings)
    resumed.restore(6, tmp_path)
    assert same(resumed.tuning, trajectories.tuning)


def test_parts_of_other_lengths_are_not_taken(subject):
    buffer = ReplayBuffer.record(subject, EIGHT)
    with pytest.raises(InputError, match="not recorded in such parts; delete it"):
        buffer.replace(ReplayBuffer.record(subject, dataclasses.replace(EIGHT, n_images=3), n_parts=1), 0)


def test_a_part_that_was_sampled_in_other_batches_comes_in(subject):
    singly = dataclasses.replace(EIGHT, sampling=SamplingConfig(steps=3, batch_size=1))
    buffer, newer = ReplayBuffer.record(subject, singly), ReplayBuffer.record(subject, dataclasses.replace(EIGHT, n_images=2), n_parts=1)
    assert buffer.call_lengths == 24 * [1] and newer.call_lengths == 3 * [2]
    buffer.replace(newer, 2)
    assert buffer.call_lengths == 12 * [1] + 3 * [2] + 6 * [1]
    assert all(torch.equal(tensor[12:18], newer.tensors[name]) for name, tensor in buffer.tensors.items())
    calls = [buffer.timesteps[start:stop].unique() for start, stop in itertools.pairwise(buffer.call_edges)]
    assert all(len(times) == 1 for times in calls), "every call is still of one timestep"


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


def test_a_denoiser_in_16_bits_is_not_tuned() -> None:
    subject = Subject(nn.Linear(2, 2).bfloat16(), sample=lambda **_: torch.zeros(1, 1, 2, 2), name="half")
    with pytest.raises(InputError, match="subject half: its denoiser is in 16 bits; load it in float32 to tune it"):
        Trajectories(subject, TuneConfig(n_images=4))
