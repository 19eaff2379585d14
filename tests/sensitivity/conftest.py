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
from sedaq.sensitivity.run import Run, Settings

SETTINGS = Settings(n_images=16, sampling=SamplingConfig(steps=2), calibration_images=8)
SUBJECT = """
import os, signal
import torch
from sedaq import InputError, Subject
from sedaq.models.noise import image_noise


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(28, 24), torch.nn.Linear(24, 32), torch.nn.Linear(32, 28)])

    def forward(self, x):
        for block in self.blocks[:-1]:
            x = block(x).tanh()
        return self.blocks[-1](x)


def make():
    torch.manual_seed(0)
    denoiser = Tiny()

    def sample(*, seed, start, n_images, steps=None, **settings):
        if "guidance" in settings:
            raise InputError("guidance: tiny has no null class")
        fatal = os.environ.get("SAMPLING_IS_FATAL_ONCE")
        if fatal and n_images > 1:
            try:
                os.unlink(fatal)
                os.kill(os.getpid(), signal.SIGKILL)
            except FileNotFoundError:  # it was fatal before
                pass
        x = image_noise(seed, start, n_images, (1, 28, 28))
        for _ in range(steps or 2):
            x = x + 3 * denoiser(x)
        return x.sigmoid()

    return Subject(denoiser, sample=sample, conditions=list(range(10)), name="tiny", extractor="embedded")
"""


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
def run(probed: Path, tmp_path: Path) -> Run:
    """A copy of the probed run."""
    shutil.copytree(probed, tmp_path / "run")
    return Run.open(tmp_path / "run")
