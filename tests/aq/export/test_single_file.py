"""One file: what a folder holds, loaded without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

import sedaq
from sedaq.aq.export.apply import apply
from sedaq.aq.export.single_file import load_file, write_single_file
from sedaq.cli.main import main
from sedaq.errors import InputError
from sedaq.models.folders import WEIGHTS_FILE
from sedaq.models.loading import load
from sedaq.sensitivity.plan_encodings import store_for_plan


@pytest.fixture
def quantized(pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    plan = sedaq.uniform_plan(pipeline_folder, sedaq.Budget(bits=3.0))
    chosen, store = store_for_plan(plan, str(pipeline_folder), None, tmp_path / "store", hessian="none")
    apply(store.subject, chosen, store, tmp_path / "out")
    return tmp_path / "out"


def test_it_answers_as_the_folder_does(quantized: Path, tmp_path: Path) -> None:
    write_single_file(quantized, tmp_path / "model.safetensors")
    from_folder, from_file = load(quantized, quantized=True).denoiser, sedaq.load_file(tmp_path / "model.safetensors")
    a, b = from_folder.state_dict(), from_file.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 50])
    with torch.inference_mode():
        assert torch.equal(from_folder(x, t).sample, from_file(x, t).sample)
        half = load_file(tmp_path / "model.safetensors", dtype=torch.bfloat16)
        assert half(x.bfloat16(), t).sample.dtype == torch.bfloat16
    assert all(torch.equal(half.state_dict()[name], a[name]) for name in a if name.endswith(".codes"))


def test_metadata_and_size(quantized: Path, tmp_path: Path) -> None:
    write_single_file(quantized, tmp_path / "model.safetensors")
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["sedaq_config"]) == json.loads((quantized / "unet" / "config.json").read_text())
    assert json.loads(metadata["sedaq_plan"])["kind"] == "plan" and metadata["format"] == "pt"
    extra = (tmp_path / "model.safetensors").stat().st_size - (quantized / "unet" / WEIGHTS_FILE).stat().st_size
    assert 0 < extra < 2 * sum(map(len, metadata.values()))


def test_the_verb(pipeline_folder: Path, quantized: Path, tmp_path: Path) -> None:
    plan = str(quantized / "unet" / "quantization_plan.json")
    command = ["apply", str(pipeline_folder), plan, "--out", str(tmp_path / "again"), "--hessian", "none"]
    assert main([*command, "--single-file", str(tmp_path / "model.safetensors")]) == 0
    assert load_file(tmp_path / "model.safetensors").config.sample_size == 8


def test_what_is_no_such_file(quantized: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no tensors")
    for name, culprit in (
        ("other.safetensors", "holds no model that sedaq quantized"),
        ("text", "cannot be read"),
        ("absent", "cannot be read"),
    ):
        with pytest.raises(InputError, match=culprit):
            load_file(tmp_path / name)
    with pytest.raises(InputError, match="holds not one quantized model"):
        write_single_file(tmp_path / "store", tmp_path / "model.safetensors")
    write_single_file(quantized, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        load_file(tmp_path / "cut.safetensors")
