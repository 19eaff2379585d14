"""A run folder of the present schema, kept in tests/data as `python benchmarks/tiny_run.py` wrote it: every reader opens it, and nothing is made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import sedaq
from sedaq.aq.plans import menu_choice, store
from sedaq.aq.plans.plan import Plan
from sedaq.aq.tuning.artifact import load_tuned
from sedaq.reports.doctor import RECORDS, examine
from sedaq.reports.report import write_report
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_run
from sedaq.sensitivity.kept_evaluations import plan_of
from sedaq.sensitivity.predictor import fitting
from sedaq.sensitivity.probing import prober
from sedaq.sensitivity.probing.probe import probe_run
from sedaq.sensitivity.run import Run
from sedaq.storage import read_sealed

pytestmark = pytest.mark.usefixtures("nothing_shipped")  # it was fitted without a prior
KEPT = Path(__file__).parents[1] / "data" / "run-now"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KEPT, tmp_path / "kept"))


@pytest.fixture
def run(folder: Path) -> Run:
    return Run.open(folder / "run", subject=str(folder / "model"))


@pytest.fixture
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("made again")

    makers = (
        (store, "encode_objective"), (store, "fit_book"), (store, "calibrate"), (menu_choice, "encode_objective"), (prober.Prober, "sample_and_measure"),
        (fitting, "_fit"), (prober, "sampled_reference"),
    )  # fmt: skip
    for module, name in makers:
        monkeypatch.setattr(module, name, refuse)


def test_it_holds_every_kind_of_file_and_all_are_whole(folder: Path) -> None:
    found = examine(folder / "run")
    assert found.is_whole and found.findings == ()
    kinds = {read_sealed(path)[0] for path in (folder / "run").rglob("*") if path.suffix in (".json", ".jsonl", ".safetensors")}
    of_evaluations = {"evaluation result", "evidence"}  # which lie in a run only while it evaluates its own plans, or has done so
    assert {kind for kind, _ in RECORDS.values()} - kinds - of_evaluations == {"images", "replay"}, "images and trajectories are large"
    assert examine(folder / "small").is_whole


@pytest.mark.usefixtures("nothing_is_made")
def test_every_verb_reads_what_is_there(run: Run, folder: Path) -> None:
    probe_run(run, n_configs=14)
    run.fill_store()
    fitted = fitting.fit(run)
    assert fitted.summary["n_probes"] == 14 and fitting.load_predictor(run).metric == "fid"
    found = search_run(run, Budget(bits=3.0), SearchConfig(verify=2, trials=4))
    assert found.plan == Plan.load(folder / "run" / "plans" / "plan.json") and found.measured is not None
    assert plan_of(run, folder / "small").hash == found.plan.hash
    (tuned,) = (folder / "run" / "tuned").iterdir()
    assert load_tuned(tuned).losses[0][0] == 0


def test_its_written_model_loads_and_its_report_is_written(run: Run, folder: Path) -> None:
    model = sedaq.load(folder / "small", quantized=True)
    assert model.shape_of(sedaq.SamplingConfig()) == (1, 28, 28)
    page = write_report(run.folder).read_text()
    assert "transformer_blocks.0" in page and "Bits against fidelity" in page
