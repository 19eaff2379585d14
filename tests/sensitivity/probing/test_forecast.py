"""What probing will take: counted in images, steps and layers, and kept to."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import sedaq
from sedaq.cli.main import main
from sedaq.errors import InputError
from sedaq.models.subject import Subject
from sedaq.sensitivity.probing import forecast as forecast_module
from sedaq.sensitivity.probing import probe as probe_module
from sedaq.sensitivity.probing.forecast import Forecast, Stage

STEP, FIXED = 2.0, 3.0  # seconds of an image, by a clock that only sampling moves


class Time:
    """A clock that stands still but while images are sampled."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    found = Time()
    for module in (forecast_module, probe_module):
        monkeypatch.setattr(module, "clock", found)
    return found


@pytest.fixture
def run(time: Time, tmp_path: Path) -> sedaq.Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        time.now += n_images * (FIXED + (steps or 7) * STEP)
        noise = [torch.randn(64, generator=torch.Generator().manual_seed(seed + i)) for i in range(start, start + n_images)]
        x = torch.stack(noise)
        for _ in range(steps or 7):
            x = model(x) + 0.1 * x
        return nn.functional.interpolate(x.sigmoid().reshape(n_images, 1, 8, 8), (28, 28))

    subject = Subject(model, sample=sample, name="slow", extractor="embedded")
    sampling = sedaq.SamplingConfig(steps=5)
    return sedaq.Run(tmp_path / "run", subject, sampling=sampling, images=16, calibration_images=8, calibration_steps=5, seed=0)


def test_times_are_those_of_the_images_to_sample(run: sedaq.Run) -> None:
    found = run.forecast(20)
    by_name = {stage.name: stage.seconds for stage in found.stages}
    image = FIXED + 5 * STEP
    assert by_name["probes"] == pytest.approx((20 + 1) * 16 * image)
    assert by_name["calibration"] == pytest.approx(8 * image + FIXED + 2 * STEP)
    assert by_name["gradients, to fit"] == pytest.approx(forecast_module.GRADIENT_IMAGES * image + 3 * forecast_module.N_CALLS * STEP)
    assert by_name["menus"] == by_name["encoding"] == 0, "the clock stands still there"
    assert found.n_configs == 20 and found.seconds == pytest.approx(sum(by_name.values()))
    assert not run.folder.exists()


def test_workers_and_memory(run: sedaq.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    run.executor = "processes:4"
    image = FIXED + 5 * STEP
    found = run.forecast(20, memory=1)
    assert found.stages[-1].seconds == pytest.approx(21 * 16 * image / 2), "more workers than cores gain nothing"
    assert found.stages[0].seconds == pytest.approx(2 * 8 * image + FIXED + 2 * STEP), "one pass for each layer"


def stages(before: float, probe: float, n: int) -> Forecast:
    return Forecast((Stage("calibration", before, 0, 0, ()), Stage("probes", n * probe, 0, 0, ("images",))), n)


def test_how_many_probes_there_is_time_for() -> None:
    assert stages(1000, 10, 64).configs_within(1000 + 10 * 30 + 5) == 30
    assert stages(1000, 10, 64).configs_within(10**6) == 64
    assert stages(0, 10, 3).configs_within(31) == 3, "few that are left may be less than a predictor needs"
    with pytest.raises(InputError, match=r"`max_hours` is too short: 0.28 hours pass before the first probe, and 12 probes end after 0.31"):
        stages(1000, 10, 64).configs_within(1000)


def test_probing_keeps_to_the_hours(run: sedaq.Run, time: Time, caplog: pytest.LogCaptureFixture) -> None:
    image = FIXED + 5 * STEP
    before = run.forecast(20)
    fixed = before.seconds - before.stages[-1].seconds
    start = time.now
    hours = (fixed + 14.5 * before.seconds_of_a_probe + 100 * image) / 3600  # and what a forecast takes itself
    with caplog.at_level(logging.WARNING, "sedaq"):
        run.probe(20, max_hours=hours)
    n_probes = len((run.folder / "probes.jsonl").read_text().splitlines())
    assert 12 <= n_probes < 20 and time.now - start <= 3600 * hours
    assert "hours are expected to be enough for" in caplog.text
    again = run.forecast(20)
    assert again.n_configs == 20 - n_probes
    assert [stage.seconds for stage in again.stages[:3]] == [0, 0, 0]


@pytest.mark.parametrize("hours", [0, -1, float("nan")])
def test_hours_that_are_none(hours: float, run: sedaq.Run) -> None:
    with pytest.raises(InputError, match="`max_hours`: got .*; give a number above 0"):
        run.probe(20, max_hours=hours)
    assert not run.folder.exists()


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["probe", "mnist-dit", "--run", str(tmp_path / "run"), "--images", "16", "--steps", "2", "--configs", "12", "--dry-run"]
    assert main([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in content["stages"]] == ["calibration", "menus", "encoding", "gradients, to fit", "probes"]
    assert all(stage["seconds"] > 0 and stage["memory_bytes"] > 0 for stage in content["stages"])
    assert content["stages"][-1]["halved_by"] == ["--configs", "--images", "--steps", "--workers"]
    assert not (tmp_path / "run").exists()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "12 probes to measure" in printed and "--calibration-images" in printed
