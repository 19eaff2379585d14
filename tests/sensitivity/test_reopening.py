"""Runs that a stranger hands on: nothing in one is run or downloaded, and what needs no model needs none."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sedaq.cli.main import main
from sedaq.errors import InputError, UntrustedError
from sedaq.models import loading
from sedaq.models.loading import load, may_be_reopened
from sedaq.models.outline import OutlinedSubject, outline_of
from sedaq.sensitivity.kept_evaluations import evaluate_plan
from sedaq.sensitivity.predictor.fitting import fit
from sedaq.sensitivity.run import OUTLINE_FILE, Run
from sedaq.storage import read_json, write_json


@pytest.fixture
def handed_on(probed: Path, tmp_path: Path) -> Path:
    """A run whose model is code that nobody has named since; running it again leaves a trace."""
    shutil.copytree(probed, tmp_path / "run")
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\ndef make(): raise SystemExit\n")
    content = read_json(tmp_path / "run" / "run.json", "run")
    content["subject"]["argument"] = f"{hostile}:make"
    write_json(tmp_path / "run" / "run.json", "run", content)
    return tmp_path / "run"


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    for name in ("_load_function", "_download", "load_folder", "map_folder"):
        monkeypatch.setattr(loading, name, refuse)


NOTES = ("{}/evil.py:make", "somebody/model", "{}/absent", "{}/a.safetensors:{}/absent", "{}/own", "{}/a.safetensors:x.py:own")


@pytest.mark.parametrize("note", NOTES)
def test_what_a_file_names_is_not_run_or_downloaded(note: str, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit")
    (tmp_path / "evil.py:make").mkdir()  # a folder of that name makes it no folder's name
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "own").mkdir()
    write_json(tmp_path / "own" / "sedaq_subject.json", "subject", {"source": "evil.py:make"})
    assert not may_be_reopened(note.replace("{}", str(tmp_path)))


def test_shipped_names_and_folders_without_code_are_loaded(tmp_path: Path) -> None:
    assert may_be_reopened("mnist-dit") and may_be_reopened(str(tmp_path))


@pytest.mark.usefixtures("no_loading", "fast_fit")
def test_fit_and_report_never_load_the_model(handed_on: Path) -> None:
    assert main(["fit", "--run", str(handed_on)]) == 0
    assert main(["report", "--run", str(handed_on)]) == 0
    assert (handed_on / "report.html").stat().st_size > 10_000 and not (handed_on.parent / "it ran").exists()


@pytest.mark.parametrize("words", [["search", "--bits", "3", "--verify", "2"], ["bench", "search", "--bits", "3"]])
@pytest.mark.usefixtures("fast_fit")
def test_verbs_that_sample_want_the_model_by_its_name(
    words: list[str], handed_on: Path, subject: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(Run.open(handed_on))
    assert main([*words, "--run", str(handed_on)]) == 2
    said = capsys.readouterr().err
    assert f"--subject {handed_on.parent / 'hostile.py'}:make" in said and said.count("\n") == 1
    assert not (handed_on.parent / "it ran").exists()


@pytest.mark.usefixtures("fast_fit")
def test_with_its_name_it_works_wherever_it_lies(handed_on: Path, subject: str, tmp_path: Path) -> None:
    file, _, function = subject.rpartition(":")
    shutil.copy(file, tmp_path / "moved.py")
    moved = f"{tmp_path / 'moved.py'}:{function}"
    fit(Run.open(handed_on))
    assert main(["search", "--run", str(handed_on), "--subject", moved, "--bits", "3", "--verify", "2"]) == 0
    assert Run.open(handed_on, subject=moved).subject_argument == moved
    assert read_json(handed_on / "run.json", "run")["subject"]["argument"] == moved, "and its place is known from now on"


def test_a_hub_id_is_not_downloaded(handed_on: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = read_json(handed_on / "run.json", "run")
    content["subject"]["argument"] = "somebody/model"
    write_json(handed_on / "run.json", "run", content)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UntrustedError, match="pass `subject` somebody/model"):
        Run.open(handed_on).subject.sample(seed=0, n_images=1)


def test_a_model_in_full_precision_is_not_loaded_by_its_note_either(handed_on: Path) -> None:
    with pytest.raises(UntrustedError):
        evaluate_plan(Run.open(handed_on), "full precision", None, n_images=8)
    assert not (handed_on.parent / "it ran").exists()


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: write_json(path, "outline", {**read_json(path, "outline"), "fingerprint": "0" * 16}),
        lambda path: write_json(path, "outline", {**read_json(path, "outline"), "layers": [3]}),
        lambda path: write_json(path, "outline", {**read_json(path, "outline"), "weights": {}}),
    ],
    ids=["missing", "cut", "of another model", "mistyped", "without weights"],
)
def test_a_damaged_outline_is_made_again_of_the_model(harm: Callable[[Path], None], probed: Path, subject: str, tmp_path: Path) -> None:
    shutil.copytree(probed, tmp_path / "run")
    path = tmp_path / "run" / OUTLINE_FILE
    before = path.read_bytes()
    harm(path)
    with pytest.raises(UntrustedError):
        Run.open(tmp_path / "run")
    Run.open(tmp_path / "run", subject=subject)
    assert path.read_bytes() == before


def test_an_outline_knows_names_and_fingerprints_and_loads_the_rest_once(subject: str) -> None:
    whole, loads = load(subject), []

    def load_it() -> Any:
        loads.append(1)
        return load(subject)

    found = OutlinedSubject(outline_of(whole), load_it)
    assert found.layers == whole.layers and found.tensor_specs == whole.tensor_specs and found.name == whole.name
    assert (found.fingerprint, found.model_fingerprint) == (whole.fingerprint, whole.model_fingerprint)
    assert all(found.weight_fingerprint(layer.name) == whole.weight_fingerprint(layer.name) for layer in whole.layers)
    assert not loads and not found.is_loaded
    name = whole.layers[0].name
    assert torch.equal(found.weight(name), whole.weight(name)) and found.source == whole.source
    assert found.denoiser is not None and loads == [1] and found.is_loaded
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        found.nothing  # noqa: B018


def test_an_outline_with_other_layers_than_the_model_is_refused(probed: Path, subject: str, tmp_path: Path) -> None:
    shutil.copytree(probed, tmp_path / "run")
    Run.open(tmp_path / "run", subject=subject)
    path = tmp_path / "run" / OUTLINE_FILE
    outline = read_json(path, "outline")
    first, *others = outline["layers"]
    forged = {**outline, "layers": [{**first, "name": "evil"}, *others]}
    forged |= {
        "tensors": {**outline["tensors"], "evil.weight": next(iter(outline["tensors"].values()))},
        "weights": {**outline["weights"], "evil": "0"},
    }
    write_json(path, "outline", forged)
    outlined = OutlinedSubject(read_json(path, "outline"), lambda: load(subject))
    assert outlined.layers[0].name == "evil"
    with pytest.raises(InputError, match=r"layers\.json: names other layers than the model has; delete it"):
        outlined.denoiser  # noqa: B018
    for name in ("../evil", "/evil", "a\x00b", "x" * 300, ""):
        write_json(path, "outline", {**forged, "layers": [{**first, "name": name}, *others]})
        with pytest.raises(InputError, match=r"field 'layers\.0\.name' must match pattern"):
            read_json(path, "outline")
