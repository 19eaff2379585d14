"""Trajectories are renewed, and rows come in an order."""

from __future__ import annotations

import dataclasses

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
