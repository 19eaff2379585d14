"""The verb `learn`, and what of it is shipped."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pandas as pd
import pytest

from sedaq.errors import InputError
from sedaq.sensitivity.prior import use
from sedaq.sensitivity.prior.corpus import read_corpus, write_corpus
from sedaq.sensitivity.prior.fit import fit_prior
from sedaq.sensitivity.prior.learn import SHIPPED_CORPUS, learn
from sedaq.sensitivity.prior.model import LearntPrior, TreeSettings
from sedaq.sensitivity.prior.use import SHIPPED_FILE, known_prior
from sedaq.sensitivity.run import Run

from .synthetic import synthetic_corpus

pytestmark = pytest.mark.usefixtures("nothing_shipped")


def test_learning_adds_a_run_to_the_corpus_and_says_what_it_is_worth(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mine" / "corpus.parquet"
    with pytest.raises(InputError, match="holds one model only"):
        learn([run], path)
    assert not list(path.parent.glob("*")), "nothing half-written"
    write_corpus(path, synthetic_corpus(3, 6))
    before = fit_prior(synthetic_corpus(3, 6), settings=TreeSettings(n_trees=2))
    before.save(path.with_suffix(use.PRIOR_SUFFIX))
    found = learn([run.folder], path)
    assert found.added == (run.subject.name,) and len(found.models) == 4 and found.before is not None
    assert set(found.before["models"]) < set(found.after["models"]) and found.after["covered"] is not None
    assert LearntPrior.load(found.prior).models == list(found.models) and set(read_corpus(path)["model"]) == set(found.models)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        f"corpus.{suffix}" for suffix in ("dependence.csv", "interactions.csv", "parquet", "prior.json", "properties.csv")
    ]
    assert LearntPrior.load(found.prior).settings == before.settings, "as trees were grown before"
    again = learn([run], path)
    assert again.n_rows == found.n_rows, "a run's rows take the place of its earlier ones"
    assert known_prior() is None, "a corpus elsewhere is not the user's own"


def test_what_is_shipped_is_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert set(project["tool"]["setuptools"]["package-data"]["sedaq.sensitivity.prior"]) == {SHIPPED_FILE, SHIPPED_CORPUS}


def test_a_file_that_is_no_corpus_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    path.write_text("mine")
    with pytest.raises(InputError, match="sedaq did not write it"):
        learn([run], path)
    pd.DataFrame({"a": [1.0]}).to_parquet(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="field 'kind' is None"):
        learn([run], path)
    assert path.read_bytes() == before
