"""A subject so small that a probe takes milliseconds, and a run of it that is probed once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sklearn.ensemble import RandomForestRegressor

from sedaq.models.sampling import SamplingConfig
from sedaq.sensitivity.explanation import explanation
from sedaq.sensitivity.predictor import cross_validation
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings

SETTINGS = Settings(n_images=16, sampling=SamplingConfig(steps=2), calibration_images=8, calibration_steps=2)
SUBJECT = (Path(__file__).parents[1] / "data" / "tiny.py").read_text(encoding="utf-8")  # that of the run which is kept there


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("subject") / "tiny_of_the_flow.py"
    path.write_text(SUBJECT)
    return f"{path}:make"


@pytest.fixture
def fast_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less repetition; the same code."""
    monkeypatch.setattr(cross_validation, "REPEATS", 1)
    monkeypatch.setattr(cross_validation, "BOOTSTRAPS", 20)
    monkeypatch.setattr(cross_validation, "RandomForestRegressor", lambda _, **settings: RandomForestRegressor(5, **settings))
    monkeypatch.setattr(explanation, "N_DRAWS", 10)
    monkeypatch.setattr(explanation, "N_SPLITS", 2)


@pytest.fixture(scope="session")
def probed(subject: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probed") / "run"
    probe(subject, folder, n_configs=16, settings=SETTINGS)
    return folder


@pytest.fixture
def run(probed: Path, subject: str, tmp_path: Path) -> Run:
    """A copy of the probed run."""
    shutil.copytree(probed, tmp_path / "run")
    return Run.open(tmp_path / "run", subject=subject)
