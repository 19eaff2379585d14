"""A model as the hub's client keeps it: a snapshot whose files are links to blobs, which are named by their hashes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

import sedaq
from sedaq.cli.main import main
from sedaq.models.loading import load
from sedaq.storage import file_sha256

REPOSITORY, COMMIT = "models--someone--tiny", "0123456789" * 4


@pytest.fixture
def snapshot(pipeline_folder: Path, tmp_path: Path) -> Path:
    blobs, found = tmp_path / REPOSITORY / "blobs", tmp_path / REPOSITORY / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    for path in (path for path in pipeline_folder.rglob("*") if path.is_file()):
        link, blob = found / path.relative_to(pipeline_folder), blobs / file_sha256(path)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (tmp_path / REPOSITORY / "refs").mkdir()
    (tmp_path / REPOSITORY / "refs" / "main").write_text(COMMIT)
    return found


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_it_is_the_same_model(variant: str, snapshot: Path, pipeline_folder: Path) -> None:
    whole, weights = load(pipeline_folder), snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name(f"diffusion_pytorch_model{variant}.safetensors"))
    for found in (load(snapshot), load(snapshot, mapped=True)):
        assert found.fingerprint == whole.fingerprint and found.tensor_specs == whole.tensor_specs
    assert sedaq.inspect(snapshot)["size_bytes"] == sedaq.inspect(pipeline_folder)["size_bytes"]


def test_its_id_finds_it_offline(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> list[str]:
        raise OSError("there is no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert load("someone/tiny").folder == snapshot


def test_what_is_written_holds_no_links(snapshot: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    before = {path: path.read_bytes() for path in (tmp_path / REPOSITORY / "blobs").iterdir()}
    sedaq.uniform_plan(snapshot, sedaq.Budget(bits=3.0)).save(plan)
    assert main(["apply", str(snapshot), str(plan), "--hessian", "none", "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in (tmp_path / REPOSITORY / "blobs").iterdir()} == before
    shutil.rmtree(tmp_path / REPOSITORY)
    assert not any(path.is_symlink() for path in out.rglob("*")) and (out / "README.md").read_text().startswith("kept\n")
    images = load(out, quantized=True).sample(sedaq.SamplingConfig(steps=2), seed=0, n_images=2)
    assert images.shape == (2, 3, 8, 8)
