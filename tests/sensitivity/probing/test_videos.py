"""Videos of digits: what they are compared with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sedaq.aq.formats import Format
from sedaq.errors import InputError
from sedaq.models.noise import image_noise
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings

SETTINGS = Settings(n_images=8, reference_images=12, sampling=SamplingConfig(steps=2), calibration_images=4, calibration_steps=2)


@pytest.fixture
def films() -> Subject:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(28, 28))

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = image_noise(seed, start, n_images, (2, 1, 28, 28))
        return (x + net(x)).sigmoid()

    return Subject(net, sample=sample, name="films", extractor="embedded")


def test_videos_are_compared_with_videos(films: Subject, tmp_path: Path) -> None:
    """The statistics that ship with the extractor are of images."""
    run = Run.begin(films, tmp_path / "run", SETTINGS)
    run.write()
    prober = Prober(run)
    assert prober.reference.description == "12 full-precision images made with other noise"
    metrics = prober.measure({layer.name: Format.parse("1x3g4") for layer in films.layers}).metrics
    assert math.isfinite(metrics["fid"].value) and metrics["feature_distance"].value > 0
    assert Prober(Run.open(tmp_path / "run", subject=films)).reference.fingerprint == prober.reference.fingerprint


def test_images_are_no_reference_of_videos(films: Subject, tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8))
    settings = Settings(**{**vars(SETTINGS), "reference": str(path)})
    with pytest.raises(
        InputError, match="`reference`: 6 images of .*, has 128 features where the model's have 256; .* leave `reference` out"
    ):
        probe(films, tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()
