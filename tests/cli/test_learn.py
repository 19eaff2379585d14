"""What `learn` teaches into a file of one's own, and verbs that go by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sedaq.cli.main import main
from sedaq.sensitivity.prior import learn
from sedaq.sensitivity.prior.corpus import write_corpus
from sedaq.sensitivity.prior.model import LearntPrior
from sedaq.storage import read_json

from ..sensitivity.prior.synthetic import synthetic_corpus
from .conftest import Made

pytestmark = pytest.mark.usefixtures("nothing_shipped")


@pytest.fixture(scope="module")
def taught(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of one's own, to which the probed run was added, and what that taught."""
    folder = tmp_path_factory.mktemp("taught")
    write_corpus(folder / "team.parquet", synthetic_corpus(3, 6))
    shutil.copytree(made.run, folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "SHIPPED_CORPUS", "none.parquet")
        patch.setenv("SEDAQ_CACHE", str(folder / "cache"))
        assert main(["learn", str(folder / "run"), "--corpus", str(folder / "team.parquet")]) == 0
    assert set(LearntPrior.load(folder / "team.prior.json").models) == {*synthetic_corpus(3, 6)["model"], "tiny"}
    return folder


@pytest.fixture
def team(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The corpus in a folder that a test may change, the run beside it."""
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    shutil.copytree(taught, tmp_path / "own")
    return tmp_path / "own" / "team.parquet"


def test_figures_and_tables_lie_beside_the_corpus(team: Path) -> None:
    found = {path.name.removeprefix("team.") for path in team.parent.glob("team.*")}
    tables = {"parquet", "prior.json", "properties.csv", "interactions.csv", "dependence.csv"}
    assert found == tables | {f"{figure}.{end}" for figure in ("summary", "dependence") for end in ("svg", "png")}


def test_verbs_go_by_the_prior_that_they_are_told(team: Path, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    run, corpus = str(team.parent / "run"), LearntPrior.load(team.with_suffix(".prior.json")).corpus
    assert main(["fit", "--run", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sources"]["prior_of"] == "gradient scores", "a corpus elsewhere is not the user's own"
    search = ["search", "--run", run, "--bits", "3", "--trials", "4"]
    assert main([*search, "--prior", str(team)]) == 2
    assert "was fitted with another prior; run `sedaq fit` with this --prior, or leave it out" in capsys.readouterr().err
    for named in (team, team.with_suffix(".prior.json")):
        assert main(["fit", "--run", run, "--json", "--prior", str(named)]) == 0
        assert json.loads(capsys.readouterr().out)["sources"]["prior_of"] == f"corpus {corpus}"
    assert main([*search, "--prior", str(team)]) == 0
    assert main(search) == 0, "what was fitted is gone by"


def test_a_run_without_probes_is_searched_by_the_prior_that_is_told(team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = team.parent / "run"
    for path in [*run.glob("probes.jsonl*"), *run.glob("predictor/*")]:
        path.unlink()
    search = ["search", "--run", str(run), "--bits", "3", "--trials", "4", "--out", str(team.parent / "plan.json")]
    assert main(search) == 2
    assert "no prior was learnt from other models" in capsys.readouterr().err
    assert main([*search, "--prior", str(team)]) == 0
    notes = read_json(team.parent / "plan.json", "plan")["provenance"]["notes"]
    assert any("what other models taught" in note for note in notes)


@pytest.mark.parametrize("verb", ["fit", "search", "probe"])
def test_a_prior_that_is_not_there_or_none_is_refused_in_a_line(
    verb: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"fit": [], "search": ["--bits", "3"], "probe": [f"{made.file}:make", "--configs", "3"]}[verb]
    (tmp_path / "none.json").write_text("{}")
    for path, said in (
        (tmp_path / "gone.parquet", "gone.prior.json: is not there; make it by `sedaq learn`"),
        (tmp_path / "none.json", "none.json"),
    ):
        assert main([verb, *own, "--run", str(made.run), "--prior", str(path)]) in (1, 2)
        error = capsys.readouterr().err.strip()
        assert said in error and "Traceback" not in error and len(error.splitlines()) == 1
