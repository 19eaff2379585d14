"""What a model's folder is told from others by."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from sedaq.models import file_hashes
from sedaq.models.file_hashes import first_difference, hashes_of, kept_sha256
from sedaq.storage import file_sha256


@pytest.fixture
def folder(pipeline_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline_folder, tmp_path / "pipeline"))


def test_every_file_that_is_loaded_has_a_hash_and_texts_have_none(folder: Path) -> None:
    (folder / "README.md").write_text("words")
    (folder / "unet" / "stray.ckpt").write_bytes(b"other weights")
    found = hashes_of(folder)
    assert {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json"} <= set(found)
    assert "unet/diffusion_pytorch_model.safetensors" in found
    assert not any("README" in name or "stray" in name for name in found)
    assert set(hashes_of(folder, ("unet",))) == {name for name in found if not name.startswith("unet/")}


def test_a_change_is_named_and_the_version_of_who_wrote_it_is_none(folder: Path) -> None:
    before = hashes_of(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_diffusers_version": "99.0"}))
    assert hashes_of(folder) == before and first_difference(before, before) is None
    path.write_text(json.dumps({**config, "num_train_timesteps": 7}))
    assert first_difference(before, hashes_of(folder)) == "scheduler/scheduler_config.json"
    path.unlink()
    assert first_difference(before, hashes_of(folder)) == "scheduler/scheduler_config.json"


def test_a_bare_denoiser_has_its_weights_config_and_scheduler(folder: Path) -> None:
    bare = folder / "unet"
    shutil.copy(folder / "scheduler" / "scheduler_config.json", bare)
    assert set(hashes_of(bare)) == {"config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"}
    assert set(hashes_of(bare, ("",))) == {"scheduler_config.json"}


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "SETTLED", -1)
    read: list[Path] = []
    monkeypatch.setattr(file_hashes, "file_sha256", lambda path: read.append(path) or file_sha256(path))
    path = tmp_path / "weights"
    path.write_bytes(bytes(2 << 20))
    assert kept_sha256(path) == kept_sha256(path) == file_sha256(path) and len(read) == 1
    path.write_bytes(b"\1" + bytes((2 << 20) - 1))
    assert kept_sha256(path) == file_sha256(path) and len(read) == 2
    os.utime(path, ns=(0, 0))  # older than what was read: another time is another state
    assert kept_sha256(path) == file_sha256(path) and len(read) == 3
    monkeypatch.setattr(file_hashes, "SETTLED", 1e9)
    assert kept_sha256(path) == file_sha256(path) and len(read) == 4, "what has just changed is read"
