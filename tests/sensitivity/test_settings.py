"""Settings of a run: what input images do to calibration, and what makes no sense."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sedaq.aq.plans.store import EncodingStore
from sedaq.errors import InputError
from sedaq.models.noise import image_noise
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings
from sedaq.storage import write_json

from .conftest import SETTINGS


def test_a_run_that_starts_from_images_calibrates_with_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (4, 4), (100 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    seen = []

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None, input_images: str | None = None) -> torch.Tensor:
        seen.append(input_images)
        return net(image_noise(seed, start, n_images, (16,))).sigmoid().reshape(n_images, 1, 4, 4)

    net = torch.nn.Sequential(torch.nn.Linear(16, 16))
    settings = replace(SETTINGS, sampling=SamplingConfig(steps=2, input_images=tmp_path / "images"))
    run = Run.begin(Subject(net, sample=sample, name="from images"), tmp_path / "run", settings)
    run.store.calibrate()
    assert set(seen) == {str(tmp_path / "images")}
    store = EncodingStore(run.subject, tmp_path / "other", calibration=run.settings.calibration, given=settings.sampling)
    assert store.identity == run.store.identity
    with pytest.raises(InputError, match="`input_images`: not those that were calibrated with"):
        EncodingStore(run.subject, tmp_path / "other", calibration=run.settings.calibration)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"calibration_images": 0}, "`calibration_images`: got 0; give a whole number of 1 or more"),
        ({"calibration_steps": -1}, "`calibration_steps`: got -1; give a whole number of 1 or more"),
        ({"rates": (0.1,)}, "`rates`: got 0.1; give numbers from 1 to 16"),
        ({"rates": ()}, "`rates`: got none"),
        ({"rates": (2.0, float("nan"))}, "`rates`: got 2, nan"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Settings(**wrong)  # type: ignore[arg-type]


def test_runs_of_few_steps_calibrate_in_20(subject: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, calibration_steps=None)
    run = Run.begin(subject, tmp_path / "run", settings)
    run.write()
    for again in (run, Run.open(tmp_path / "run", subject=subject), Run.begin(subject, tmp_path / "run", settings)):
        assert again.settings.calibration_steps == again.store.calibration["steps"] == again.store.sampling.steps == 20
        assert again.settings.sampling.steps == 2 and again.store.identity == run.store.identity
    other = replace(settings, calibration_steps=30)
    with pytest.raises(InputError, match=r"run.json: was begun with calibration_steps = 20, not 30; use the same"):
        Run.begin(subject, tmp_path / "run", other)
    assert Run.begin(subject, tmp_path / "other", other).store.calibration["steps"] == 30


def test_a_run_that_does_not_say_calibrates_in_as_many_steps_as_it_probes(subject: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, calibration_steps=None)
    begun = Run.begin(subject, tmp_path / "run", settings)
    old = {name: value for name, value in begun.settings.to_dict().items() if name != "calibration_steps"}
    write_json(tmp_path / "run" / "run.json", "run", {**begun.identity, "settings": old})
    for run in (Run.open(tmp_path / "run", subject=subject), Run.begin(subject, tmp_path / "run", settings)):
        assert run.store.calibration["steps"] == 2 and run.identity["settings"] == old


def test_more_steps_of_calibration_than_timesteps_are_refused(tmp_path: Path) -> None:
    settings = replace(SETTINGS, calibration_steps=1001)
    with pytest.raises(InputError, match="`calibration_steps`: got 1001; mnist-dit was trained on 1000 timesteps, give no more"):
        probe("mnist-dit", tmp_path / "run", n_configs=1, settings=settings)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_pipeline_has_another_scheduler_is_refused_by_the_file(pipeline_folder: Path, tmp_path: Path) -> None:
    folder, settings = Path(shutil.copytree(pipeline_folder, tmp_path / "pipeline")), replace(SETTINGS, extractor="inception")
    Run.begin(str(folder), tmp_path / "run", settings).write()
    path = folder / "scheduler" / "scheduler_config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "beta_end": 0.03}))
    said = "was begun with another scheduler/scheduler_config.json than .* has now"
    with pytest.raises(InputError, match=said):
        Run.begin(str(folder), tmp_path / "run", settings)
    with pytest.raises(InputError, match=said):
        Run.open(tmp_path / "run", subject=str(folder))
    with pytest.raises(InputError, match=said):
        Run.open(tmp_path / "run").subject.weight("conv_in")  # by the run's own note, once the model is needed
    path.write_text(before)
    assert Run.open(tmp_path / "run").subject.weight("conv_in").ndim == 4
