"""A run folder that version 0.1.0 wrote, kept in tests/data, with the subject that it is of: everything in it is read, nothing is made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sedaq.aq.plans import menu_choice, store
from sedaq.aq.plans.plan import Plan
from sedaq.reports.report import write_report
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_run
from sedaq.sensitivity.predictor.fitting import load_predictor
from sedaq.sensitivity.probing import prober
from sedaq.sensitivity.probing.probe import probe_run
from sedaq.sensitivity.probing.probes import read_probes
from sedaq.sensitivity.run import Run
from sedaq.storage import read_json

DATA = Path(__file__).parents[1] / "data"
SUBJECT = f"{DATA / 'tiny.py'}:make"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    shutil.copytree(DATA / "run-0.1.0", tmp_path / "run")
    return Run.open(tmp_path / "run", subject=SUBJECT)


def test_nothing_is_made_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("made again")

    for module, name in ((store, "encode_objective"), (store, "fit_book"), (store, "calibrate"), (menu_choice, "encode_objective")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(prober.Prober, "measure", refuse)
    probe_run(run, n_configs=14)  # all of them are there
    run.fill_store()
    probes = read_probes(run)
    assert len(probes) == 14 and probes.notes == ()
    kept = read_json(run.folder / "predictor" / "fit.json", "fit")
    assert kept["n_probes"] == 14 and load_predictor(run).metric == kept["metric"]


def test_its_plans_are_valid_and_its_predictor_finds_others(run: Run) -> None:
    (path,) = [path for path in (run.folder / "plans").glob("*.json") if path.name != "front.json"]
    plan = Plan.load(path)
    plan.validate(run.subject)
    found = search_run(run, Budget(bits=3.0), SearchConfig(trials=8))
    assert found.plan.size_bytes <= found.uniform.size_bytes and found.plan.encoding == plan.encoding


def test_its_report_is_written(run: Run) -> None:
    page = write_report(run.folder).read_text()
    assert "blocks.0" in page and "Bits against fidelity" in page
