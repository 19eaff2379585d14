"""Milliseconds that a plan is foretold to take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sedaq.aq.formats import AS_IS, Format
from sedaq.aq.profiling.operations import tokens_of
from sedaq.aq.profiling.step_times import StepTimes, timed
from sedaq.errors import InputError
from sedaq.kernels import cost_model
from sedaq.kernels.cost_model import random_matrix
from sedaq.models.subject import Subject

COSTS = {"dequantize": {size: [1e-6, 0.0, 1e-9, 0.0, 0.0, 0.0] for size in cost_model.SIZES}}  # a call, and every code


class Convolutions(nn.Module):
    """Convolutions of one group and of several, one that is called twice, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.grouped = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 64, 3, padding=1, groups=2)
        self.narrow, self.twice, self.idle = nn.Conv2d(64, 8, 1, groups=4), nn.Linear(8, 8), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.twice(self.narrow(self.grouped(self.plain(x))).mean((2, 3))))


def sampled(denoiser: nn.Module, *shape: int) -> Subject:
    def sample(*, seed, start=0, n_images, steps=None, batch_size=64, **_):
        for _ in range(steps or 1):
            denoiser(torch.ones(min(n_images, batch_size), *shape))
        return torch.zeros(n_images, 1, 2, 2)

    return Subject(denoiser, sample=sample, name="sampled")


@pytest.fixture(autouse=True)
def costs(monkeypatch):
    monkeypatch.setattr(cost_model, "factors", lambda: COSTS)


def test_the_sum_over_layers_and_what_each_takes(subject, mixed_plan):
    times = StepTimes.measure(subject, 3)
    assert {name: sum(counts) for name, counts in times.tokens.items()} == {
        name: 3 * count for name, count in tokens_of(subject).items() if name in times.tokens
    }
    whole = {layer.name: AS_IS for layer in subject.layers}
    assert times.of_plan(whole) == times.rest + sum(times.dense.values()) and min(times.dense.values()) > 0
    assert times.of_plan(mixed_plan.formats) == times.rest + sum(times.of(*pair) for pair in mixed_plan.formats.items())
    layer = subject.layers[2]
    # Formats differ by the cost model alone: of 4 codebooks, as many codes again as of 2.
    by_law = [
        sum(
            1e9 * cost_model.seconds("dequantize", tokens, random_matrix(*layer.shape, n_codebooks, 16, 4))
            for tokens in times.tokens[layer.name]
        )
        for n_codebooks in (2, 4)
    ]
    found = [times.of(layer.name, Format.parse(text)) for text in ("2x4g4", "4x4g4")]
    assert found[1] - found[0] == pytest.approx(by_law[1] - by_law[0], abs=2)


def test_layers_of_any_geometry_called_any_number_of_times():
    subject = sampled(Convolutions(), 4, 6, 6)
    times = StepTimes.measure(subject, 2)
    assert times.tokens == {"plain": [72], "grouped": [72], "narrow": [72], "twice": [2, 2], "idle": []}
    assert times.dense["idle"] == times.beyond["idle"] == times.of("idle", Format.parse("1x4g4")) == 0
    assert times.of("narrow", Format.parse("1x4g4")) == times.of("narrow", Format.parse("2x4g4")), "groups of few rows are written out"
    assert all(times.of(layer.name, Format.parse("1x4g4")) > 0 for layer in subject.layers[:-1])


def test_what_was_measured_is_kept(subject, tmp_path: Path, monkeypatch):
    first = StepTimes.of_run(tmp_path, subject, 2)
    monkeypatch.setattr(StepTimes, "measure", lambda *_: pytest.fail("measured again"))
    assert StepTimes.of_run(tmp_path, subject, 2) == first
    monkeypatch.undo()
    StepTimes.of_run(tmp_path, subject, 1)
    assert len(list((tmp_path / "step-times").iterdir())) == 2, "other numbers of images are other times"


def test_times_of_another_model_are_measured_anew(subject, tmp_path: Path, caplog):
    StepTimes.of_run(tmp_path, subject, 2)
    other = sampled(nn.Sequential(nn.Linear(4, 4)), 4)
    assert StepTimes.of_run(tmp_path, other, 2).dense.keys() == {"0"} and "damaged; the milliseconds of layers is made again" in caplog.text


def test_on_other_devices_nothing_is_foretold():
    with pytest.raises(InputError, match="leave `ms_per_step` out"):
        StepTimes.measure(sampled(nn.Linear(2, 2).to("meta"), 2), 1)


def test_time_in_modules_is_summed():
    model = nn.ModuleDict({"called": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    with timed(model, ["called", "idle"]) as ms:
        model["called"](torch.ones(1, 2))
    assert ms["called"] > 0 == ms["idle"]
