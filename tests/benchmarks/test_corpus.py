"""The corpus: every denoiser trains, goes on bit by bit where it stopped, samples, and is measured as any other model."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import corpus_training
import numpy as np
import pytest
import torch
from corpus import Sizes, add
from corpus_models import MODELS, folder_of, subject_argument
from corpus_training import denoising_loss
from PIL import Image
from results import kept

import sedaq
from sedaq.models.folders import WEIGHTS_FILE
from sedaq.models.sampling import SamplingConfig
from sedaq.models.shipped import train_pipeline
from sedaq.storage import file_sha256

TRAINED = [name for name, model in MODELS.items() if model.training]


def write_cifar(path: Path, n: int, rng: np.random.Generator) -> None:
    files = []
    for pixels in rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(path, blob=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=np.arange(n) % 10)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in the form of both data sets."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(folder / "mnist.npz", x_train=images, y_train=np.arange(40) % 10, x_test=images, y_test=np.arange(40) % 10)
    for split in ("train", "test"):
        write_cifar(folder / f"cifar10_{split}_jpegs.npz", 80, rng)
    return folder


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEDAQ_CORPUS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_trains_and_samples(name: str, data: Path, corpus: Path) -> None:
    corpus_training.train_model(name, data, steps=2)
    subject = sedaq.load(subject_argument(name))
    images = subject.sample(SamplingConfig(steps=2), seed=0, n_images=3)
    assert images.shape == (3, *((3, 32, 32) if "cifar" in name else (1, 32, 32) if "digits" in name else (1, 28, 28)))
    alone = subject.sample(SamplingConfig(steps=2), seed=0, start=2, n_images=1)
    assert torch.allclose(alone, images[2:], atol=1e-4)
    assert 20 <= len(subject.layers) <= 70 and sum(layer.n_weights for layer in subject.layers) < 3e6


@pytest.mark.parametrize("name", ["cifar-conv", "mnist-uvit"])
def test_training_goes_on_bit_by_bit(name: str, data: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = corpus_training.train_model(name, data, steps=3)
    weights = file_sha256(whole / WEIGHTS_FILE)
    monkeypatch.setattr(train_pipeline, "CHECKPOINT_EVERY", 1)
    shutil.rmtree(folder_of(name))
    losses = iter([False, False, True])

    def stopped(*arguments: Any) -> torch.Tensor:
        if next(losses):
            raise KeyboardInterrupt
        return denoising_loss(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus_training, "denoising_loss", stopped)
        corpus_training.train_model(name, data, steps=3)
    assert (folder_of(name) / "checkpoint.pt").exists() and not whole.exists()
    assert file_sha256(corpus_training.train_model(name, data, steps=3) / WEIGHTS_FILE) == weights


@pytest.mark.parametrize(("name", "excluded"), [("cifar-conv", ("*block*",)), ("mnist-flux", ("transformer_blocks*", "single*"))])
@pytest.mark.slow
def test_a_model_is_measured_for_all_purposes(name: str, excluded: tuple[str, ...], data: Path, corpus: Path) -> None:
    sizes = Sizes((2.0, 4.0), 12, 3, 1, 20, 2, excluded, training_steps=2, classifier_steps=2, results=corpus)
    model = replace(MODELS[name], n_images=20, truth_images=10, steps=2)
    add(name, model, data, sizes)
    (row,) = kept("corpus", {"rates": [2.0, 4.0], "evaluated": [20, 2]}, corpus)
    assert {purpose: (row[purpose]["plans"], row[purpose]["images"]) for purpose in ("probe", "unseen", "truth")} == {
        "probe": (12, 20),
        "unseen": (3, 20),
        "truth": (1 + row["layers"], 10),
    }
    journal = folder_of(name) / "run" / "probes.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    learnt, unseen = ({record["plan_hash"] for record in records if record["purpose"] == purpose} for purpose in ("probe", "unseen"))
    assert not learnt & unseen
    as_is = next(record for record in records if record["purpose"] == "truth")
    assert set(as_is["layers"].values()) == {"asis"} and as_is["metrics"]["fid_excess"]["value"] == 0
    before = journal.read_bytes()
    add(name, model, data, sizes)
    assert journal.read_bytes() == before
