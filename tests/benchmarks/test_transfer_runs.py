"""All stages of transfer on runs of models so small that a probe takes milliseconds."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import render_docs
import transfer
import transfer_models
from corpus import Sizes, measure, measured_row
from corpus_models import Model
from doc_tables import transfer as transfer_tables
from doc_tables.layout import Results
from results import keep
from transfer_exponent import BELIEFS
from transfer_models import LEARNT, TODAY, Measured, complete_models, corpus_of
from transfer_search import UNIFORM, compare

from sedaq.errors import InputError
from sedaq.models.sampling import SamplingConfig
from sedaq.sensitivity.prior.corpus import read_corpus
from sedaq.sensitivity.prior.model import LearntPrior
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings

TINY = (Path(__file__).parents[1] / "data" / "tiny.py").read_text(encoding="utf-8")
NAMES = ("first", "second", "third", "last")  # the last one is a test model
MODEL = Model("tiny", n_images=20, truth_images=40, steps=2)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of four models, complete."""
    root = tmp_path_factory.mktemp("corpus")
    for seed, name in enumerate(NAMES):
        path = root / f"{name}.py"
        path.write_text(TINY.replace("manual_seed(0)", f"manual_seed({seed})").replace('name="tiny"', f'name="{name}"'))
        settings = Settings(
            n_images=20, sampling=SamplingConfig(steps=2), calibration_images=8, calibration_steps=2, rates=(1.5, 2.0, 2.5, 3.0, 4.0)
        )
        measure(Run.begin(f"{path}:make", root / name / "run", settings), MODEL, Sizes(n_probes=12, n_unseen=12))
    return root


@pytest.fixture
def sizes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_shipped: None) -> Sizes:
    monkeypatch.setenv("SEDAQ_CORPUS", str(folder))
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer_models, "MODELS", {name: replace(MODEL, is_test=name == "last") for name in NAMES})
    monkeypatch.setattr(transfer, "N_DRAWS", 50)
    monkeypatch.setattr(transfer_models, "subject_argument", lambda name: f"{folder / name}.py:make")
    return Sizes(n_probes=12, n_unseen=12, results=tmp_path / "results")


def rows(sizes: Sizes, name: str) -> Any:
    return json.loads((sizes.results / f"{name}.json").read_text())["rows"]


def test_runs_that_are_not_complete_and_test_models_never_enter(sizes: Sizes) -> None:
    assert complete_models(is_test=False, sizes=sizes) == ["first", "second", "third"]
    assert complete_models(is_test=True, sizes=sizes) == ["last"]
    assert complete_models(is_test=False, sizes=replace(sizes, n_unseen=13)) == []
    with pytest.raises(AssertionError, match="test models never enter"):
        corpus_of(["first", "last"])
    with pytest.raises(InputError, match="0 runs of the corpus are complete, 2 are needed"):
        transfer.make_corpus(replace(sizes, n_unseen=13))


def test_every_stage_keeps_what_it_came_to(sizes: Sizes, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    with pytest.raises(InputError, match=r"prior.json: is not there; make it by `python benchmarks/transfer.py corpus`"):
        transfer.judge_test_models(sizes, folder=shipped)
    transfer.make_corpus(sizes, folder=shipped, study=tmp_path / "study.jsonl", figures=tmp_path / "prior.svg", n_trials=2)
    prior, corpus = LearntPrior.load(shipped / "prior.json"), read_corpus(shipped / "corpus.parquet")
    assert list(prior.models) == ["first", "second", "third"] and set(corpus["model"]) == set(prior.models)
    (row,) = rows(sizes, "transfer_corpus")
    assert row["models"] == ["first", "second", "third"] and row["n_rows"] == len(corpus) and row["fit_seconds"] > 0
    assert {path.name for path in tmp_path.glob("prior.*")} == {
        f"prior.{name}.{end}" for name in ("summary", "dependence") for end in ("svg", "png")
    }

    transfer.leave_one_out(sizes, study=tmp_path / "nested.jsonl", n_trials=1)
    found = rows(sizes, "transfer_leave_one_out")
    asked = {(row["predictor"], row["n_probes"]) for row in found["predictors"]}
    assert asked >= {(LEARNT, 0), (LEARNT, 6), (LEARNT, 12), (TODAY, 6), (TODAY, 12)} and (TODAY, 0) not in asked
    assert {row["model"] for row in found["models"]} == {"first", "second", "third"}
    learnt = next(row for row in found["predictors"] if row["predictor"] == LEARNT and row["n_probes"] == 12)
    assert learnt["share"]["ci"][0] <= learnt["share"]["value"] <= learnt["share"]["ci"][1] + 1e-9 and 0 <= learnt["covered"]["value"] <= 1
    assert len(found["differences"]) == 3 + 2 + 2

    transfer.judge_exponents(sizes)
    beliefs = rows(sizes, "transfer_exponent")
    assert {row["n_probes"] for row in beliefs["predictors"]} == {0, 6, 12} and {row["model"] for row in beliefs["models"]} == set(
        prior.models
    )
    assert len(beliefs["differences"]) == 2 * (len(BELIEFS) - 1)

    transfer.check_findings(sizes)
    assert len(rows(sizes, "transfer_findings")) == len(transfer.FINDINGS)
    transfer.time_predictions(sizes, folder=shipped)
    assert Results(sizes.results).row("transfer_time")["seconds"] > 0

    transfer.judge_test_models(sizes, folder=shipped, searching=partial(compare, bits=3.0, n_images=40, seeds=2))
    tested = rows(sizes, "transfer_test")
    plans = {(row["plan"], row["n_probes"]): row for row in tested["plans"]}
    assert set(plans) == {(UNIFORM, 0), (LEARNT, 0), (LEARNT, 12), (TODAY, 12)}
    assert plans[LEARNT, 12]["over_probed"]["value"] == 0 and all(row["bits_per_weight"] <= 3 for row in plans.values())
    assert {row["model"] for row in tested["models"]} == {"last"}

    run = Run.open(Path(os.environ["SEDAQ_CORPUS"]) / "first" / "run", subject=f"{os.environ['SEDAQ_CORPUS']}/first.py:make")
    own = {purpose: measured_row(run, purpose) for purpose in ("probe", "unseen", "truth")}
    assert own["truth"]["plans"] == 1 + len(run.subject.layers) and 0 <= own["truth"]["above_noise"] <= 1
    row = {"model": "first", "why": "tiny", "is_test": False, "layers": len(run.subject.layers), "n_weights": 1000, "fid": {"value": 1.0}}
    keep("corpus", "python benchmarks/corpus.py first", [row | own], sizes.results)

    page = (render_docs.ROOT / "docs/experiments/transfer.md").read_text(encoding="utf-8")
    text = render_docs.render(page, render_docs.make_environment(Results(sizes.results)))
    assert "Not measured yet" not in text and "| last | learnt prior, 0 probes |" in text and "3: first, second, third" in text


def test_tables_say_how_they_are_measured_until_they_are(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for name, command in transfer_tables.COMMANDS.items():
        for draw in transfer_tables.TABLES:
            assert draw(results, name) == f"*Not measured yet.*\n\n    python benchmarks/{command}"
    assert {f"transfer.py {stage}" for stage in transfer.STAGES} | {"corpus.py NAME --data DIR"} == set(transfer_tables.COMMANDS.values())


def test_a_prior_that_has_seen_a_model_is_not_judged_by_it(sizes: Sizes) -> None:
    from sedaq.sensitivity.prior.fit import fit_prior
    from sedaq.sensitivity.prior.model import TreeSettings

    prior = fit_prior(corpus_of(["first", "second"]), settings=TreeSettings(n_trees=2))
    with pytest.raises(AssertionError, match="it has seen this model"):
        transfer_models.judged(Measured.of("first"), prior, (0,))


def test_neither_predictor_sees_what_the_user_was_taught(sizes: Sizes) -> None:
    """The known prior may have seen the model."""
    from sedaq.sensitivity.prior import use
    from sedaq.sensitivity.prior.fit import fit_prior
    from sedaq.sensitivity.prior.model import TreeSettings

    prior = fit_prior(corpus_of(["first", "second"]), settings=TreeSettings(n_trees=2))
    before = [Measured.of("third").predictor(known, 6).members[0].additive.log_slopes for known in (None, prior)]
    prior_of_all = fit_prior(corpus_of(["first", "second", "third"]), settings=TreeSettings(n_trees=2))
    prior_of_all.save(use.personal_prior())
    one = Measured.of("third")
    assert one.probes.table.priors.learnt is not None
    after = [one.predictor(known, 6).members[0].additive.log_slopes for known in (None, prior)]
    assert (before[0] == after[0]).all() and (before[1] == after[1]).all() and not (before[0] == before[1]).all()
