"""The doctor: every file of a run and of a model is looked at, and what it says is true."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from sedaq.cli.main import main
from sedaq.errors import InputError
from sedaq.reports.doctor import Diagnosis, examine

RUN = Path(__file__).parents[1] / "data" / "run-0.1.0"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def states(found: Diagnosis) -> dict[str, str]:
    return {finding.path: finding.state for finding in found.findings}


def test_a_run_that_is_whole(run: Path) -> None:
    found = examine(run)
    assert found.is_whole and not found.findings, found.findings
    assert found.n_whole == sum(path.is_file() for path in run.rglob("*"))
    assert any("sedaq fit" in step for step in found.next_steps)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_every_damaged_file_is_named(harm: str, run: Path) -> None:
    """All at once: nothing hides another, and no file is left out."""
    harmed = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".safetensors")):
        data = bytearray(path.read_bytes())
        if harm == "flipped":
            data[len(data) // 2] ^= 1
        path.write_bytes({"cut": bytes(data[: len(data) // 2]), "flipped": bytes(data), "empty": b""}[harm])
        harmed[str(path.relative_to(run))] = path
    found = states(examine(run))
    # The beginning of a journal that was cut is a journal of fewer records: a crash leaves such ones, and they are read.
    journals = {name for name in harmed if name.endswith(".jsonl")} if harm == "cut" else set()
    assert {name for name, state in found.items() if state == "damaged"} >= harmed.keys() - journals


def test_swapped_kinds_are_foreign(run: Path) -> None:
    menu = next((run / "menus").glob("*.json"))
    encoding, hessian = (next((run / folder).glob("*.safetensors")) for folder in ("encodings", "calibration"))
    shutil.copy(run / "run.json", menu)
    shutil.copy(hessian, encoding)
    found = states(examine(run))
    assert found == {str(menu.relative_to(run)): "foreign", str(encoding.relative_to(run)): "foreign"}


def test_strays_are_named_and_do_no_harm(run: Path) -> None:
    (run / "NOTES.md").write_text("mine")
    (run / "menus" / ".a.json.0123abcd").write_text("{")
    os.utime(run / "menus" / ".a.json.0123abcd", (0, 0))
    (run / ".small.new").mkdir()
    (run / ".small.new" / "config.json").write_text("{}")
    (run / "calibration" / ".x.lock").touch()
    found = examine(run)
    assert found.is_whole
    assert states(found) == {
        "NOTES.md": "stray",
        "menus/.a.json.0123abcd": "stray",
        "calibration/.x.lock": "stray",
        ".small.new/config.json": "stray",
    }
    examine(run, repair=True)
    left = {"NOTES.md": "stray", ".small.new/config.json": "stray"}
    assert states(examine(run)) == left, "the user's stay, and what an apply may be at"


def test_repair_deletes_what_can_be_made_again(run: Path) -> None:
    menu = next((run / "menus").glob("*.json"))
    menu.write_text(menu.read_text()[:-20])
    (run / "probes.jsonl").write_text("{\n")
    mine = run / "plans" / "mine.json"
    mine.write_text('{"a": 1}')
    whole = run / "searches" / "0123456789abcdef.json"
    whole.parent.mkdir(exist_ok=True)
    shutil.copy(run / "plans" / "front.json", whole)
    examine(run, repair=True)
    assert not menu.exists()
    assert (run / "probes.jsonl").exists() and mine.exists() and whole.exists(), "measurements, the user's files and whole ones stay"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_verb(words: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(run), *words]) == 0
    said = capsys.readouterr().out
    if words:
        assert json.loads(said)["findings"] == []
    else:
        assert "files are whole" in said and "next: `sedaq fit`" in said
    menu = next((run / "menus").glob("*.json"))
    menu.write_text(menu.read_text()[:-20])
    assert main(["doctor", str(run), *words]) == 1
    said = capsys.readouterr().out
    assert "damaged" in said and "again by sedaq probe" in said
    assert main(["doctor", str(run), "--repair"]) == 0
    assert main(["doctor", str(run)]) == 0


def test_a_written_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["search", "mnist-dit", "--uniform", "--bits", "3", "--out", str(tmp_path / "plan.json")]) == 0
    assert main(["apply", "mnist-dit", str(tmp_path / "plan.json"), "--hessian", "none", "--out", str(out)]) == 0
    found = examine(out)
    assert found.is_whole and not found.findings and found.n_whole == 6
    weights = out / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (out / "config.json").unlink()
    (out / "quantization_plan.json").write_text("{")
    assert states(examine(out)) == {weights.name: "damaged", "config.json": "missing", "quantization_plan.json": "damaged"}


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    (tmp_path / "models" / "a").mkdir(parents=True)
    (tmp_path / "models" / "a" / "quantization_plan.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "models"):  # holds models, and is none: nobody is told to delete it
        with pytest.raises(InputError, match="is neither a run"):
            examine(folder)
    with pytest.raises(InputError, match="is neither a run .* nor a model that `sedaq apply` wrote"):
        examine(tmp_path)
