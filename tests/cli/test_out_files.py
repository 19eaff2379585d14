"""Files that a user names to write to: his own are never written over, whatever the verb."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sedaq.cli.main import main
from sedaq.models.loading import SHIPPED_FOLDER

DIT = SHIPPED_FOLDER / "mnist-dit"


@pytest.mark.parametrize(
    "words",
    [
        "search mnist-dit --uniform --bits 3 --out {}",
        "apply mnist-dit {plan} --settings quanto --out {}",
        "apply mnist-dit {plan} --settings torchao --out {}",
        "apply mnist-dit {plan} --hessian none --out {tmp}/new --single-file {}",
        "apply mnist-dit {plan} --hessian none --out {tmp}/new --single-file {model}/diffusion_pytorch_model.safetensors",
        "apply mnist-dit {plan} --hessian none --out {tmp}/new --single-file {tmp}/new/inside.safetensors",
    ],
)
def test_files_that_sedaq_did_not_write_stay(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes, plan, model = tmp_path / "notes.txt", tmp_path / "plan.json", tmp_path / "model"
    notes.write_text("mine")
    shutil.copytree(DIT, model)
    assert main(["search", "mnist-dit", "--uniform", "--bits", "3", "--out", str(plan)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    filled = words.replace("{plan}", str(plan)).replace("{tmp}", str(tmp_path)).replace("{model}", str(model)).replace("{}", str(notes))
    assert main(filled.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("words", ["search mnist-dit --uniform --bits 3 --out {}", "apply mnist-dit {plan} --settings quanto --out {}"])
def test_files_that_it_wrote_are_written_again(words: str, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert main(["search", "mnist-dit", "--uniform", "--bits", "3", "--out", str(plan)]) == 0
    for _ in range(2):
        assert main(words.replace("{plan}", str(plan)).replace("{}", str(tmp_path / "out.json")).split()) == 0


def test_somebodys_run_is_no_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert main(["demo", "--fresh", "--out", str(tmp_path)]) == 2
    assert "is not a demo's folder" in capsys.readouterr().err and (tmp_path / "run.json").exists()
