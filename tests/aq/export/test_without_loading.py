"""From a plan to a folder without the model in memory: equal to what a loaded model gives, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

import sedaq
from sedaq.aq.export.apply import apply
from sedaq.cli.main import main
from sedaq.errors import InputError
from sedaq.models.folders import WEIGHTS_FILE
from sedaq.models.hessian import block_edges
from sedaq.models.loading import load
from sedaq.sensitivity.plan_encodings import store_for_plan


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_folder_with_and_without_loading(pipeline_folder: Path, tmp_path: Path) -> None:
    plan = sedaq.uniform_plan(pipeline_folder, sedaq.Budget(bits=3.0))
    for name, mapped in (("loaded", False), ("mapped", True)):
        chosen, store = store_for_plan(plan, str(pipeline_folder), None, tmp_path / f"store-{name}", hessian="none", mapped=mapped)
        assert (store.subject.mapped is not None) == mapped
        apply(store.subject, chosen, store, tmp_path / name)
        assert not (tmp_path / f"store-{name}" / "calibration").exists(), "nothing is sampled"
    assert files(tmp_path / "loaded") == files(tmp_path / "mapped")
    quantized = load(tmp_path / "mapped", quantized=True)
    assert quantized.sample(sedaq.SamplingConfig(steps=2), seed=0, n_images=1).isfinite().all()


def test_the_verbs(pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = str(tmp_path / "plan.json"), tmp_path / "out"
    assert main(["search", str(pipeline_folder), "--uniform", "--bits", "3", "--out", plan]) == 0
    assert main(["apply", str(pipeline_folder), plan, "--out", str(out), "--hessian", "none"]) == 0
    size = (out / "unet" / WEIGHTS_FILE).stat().st_size
    assert f"{size:,} bytes" in capsys.readouterr().out
    for wrong in (["--tune-steps", "3"], ["--activations", "8"], ["--run", "absent"]):
        assert main(["apply", str(pipeline_folder), plan, "--out", str(out), "--hessian", "none", *wrong]) == 2
        assert "--hessian: nothing is sampled then" in capsys.readouterr().err
    assert main(["apply", str(pipeline_folder), plan, "--out", str(out), "--hessian", "absent"]) == 2
    assert "`hessian`" not in (error := capsys.readouterr().err) and "no such file" in error


def test_matrices_from_a_file(pipeline_folder: Path, tmp_path: Path) -> None:
    """Those of a calibration, by the layers' paths, give the encodings of that calibration."""
    plan = sedaq.uniform_plan(pipeline_folder, sedaq.Budget(bits=3.0), sampling=sedaq.SamplingConfig(steps=2))
    chosen, calibrated = store_for_plan(plan, str(pipeline_folder), None, tmp_path / "own")
    matrices = {}
    for layer in calibrated.subject.layers:
        blocks = calibrated.hessian(layer).blocks
        assert len(blocks) == len(block_edges(layer.shape)) - 1 == 1
        matrices[layer.name] = blocks[0] if layer.groups > 1 else blocks[0][0]
    path = tmp_path / "hessians.safetensors"
    safetensors.torch.save_file(matrices, path)
    other, given = store_for_plan(plan, str(pipeline_folder), None, tmp_path / "given", hessian=str(path), mapped=True)
    assert other.hash != chosen.hash
    for layer in given.subject.layers[:3]:
        a, b = (store.get(layer, plan.formats[layer.name]).tensors for store in (calibrated, given))
        assert all(torch.equal(a[name], b[name]) for name in a)
    first = next(iter(matrices))
    for change, culprit in (({first: torch.eye(3)}, "it must be"), ({}, "holds no matrix for layer")):
        rest = {name: matrix for name, matrix in matrices.items() if name != first}
        safetensors.torch.save_file({**rest, **change}, path)
        with pytest.raises(InputError, match=culprit):
            given.hessian(given.subject.layer(first))


def test_config_says_how_it_was_calibrated(pipeline_folder: Path, tmp_path: Path) -> None:
    plan = sedaq.uniform_plan(pipeline_folder, sedaq.Budget(bits=3.0))
    chosen, store = store_for_plan(plan, str(pipeline_folder), None, tmp_path / "store", hessian="none", mapped=True)
    assert chosen.encoding["calibration_settings"] == {"seed": 0, "n_images": 0} and chosen.measured is None
    apply(store.subject, chosen, store, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "unet" / "quantization_plan.json").read_text())
    assert kept["encoding"] == store.identity
