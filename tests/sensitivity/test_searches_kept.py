"""What a search found is an artifact of the run: an equal search reads it back, any other is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sedaq.reports import run_report
from sedaq.search import verb
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_front, search_run
from sedaq.sensitivity.predictor.fitting import fit
from sedaq.sensitivity.run import Run

pytestmark = pytest.mark.usefixtures("fast_fit", "nothing_shipped")
CONFIG = SearchConfig(trials=8, verify=3)


class SearchedAgainError(Exception):
    pass


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch):
    """From when it is called on, no search is done."""

    def raises(*_, **__):
        raise SearchedAgainError

    return lambda: [monkeypatch.setattr(verb, name, raises) for name in ("find_plan", "find_front")]


def test_an_equal_search_is_read_back_and_any_other_is_done(run: Run, refuse) -> None:
    fit(run)
    found, front = search_run(run, Budget(bits=3.0), CONFIG), search_front(run, CONFIG, bits=[3.0])
    refuse()
    again = search_run(Run.open(run.folder), Budget(bits=3.0), CONFIG, out=run.folder / "other.json")
    assert again.to_dict() == found.to_dict() and again.uniform == found.uniform and again.plan.hash == found.plan.hash
    assert (run.folder / "other.json").exists()
    assert [plan.to_dict() for plan in search_front(run, CONFIG, bits=[3.0])] == [plan.to_dict() for plan in front]
    others = (
        (Budget(bits=2.9), CONFIG),
        (Budget(bits=3.0), replace(CONFIG, seed=1)),
        (Budget(bits=3.0), replace(CONFIG, pin={"blocks.0": "int8"})),
        (Budget(bits=3.0), replace(CONFIG, storage=str(run.folder / "optuna.log"))),
    )
    for budget, config in others:
        with pytest.raises(SearchedAgainError):
            search_run(run, budget, config)


def test_another_fit_is_searched_anew(run: Run, refuse) -> None:
    fit(run)
    search_run(run, Budget(bits=3.0), CONFIG)
    fit(run, metric="psnr")
    refuse()
    with pytest.raises(SearchedAgainError):
        search_run(run, Budget(bits=3.0), CONFIG)


def test_images_of_the_page_are_sampled_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(run)
    other = search_run(run, Budget(bits=2.2), SearchConfig(trials=8)).plan
    found = search_run(run, Budget(bits=3.0), SearchConfig(trials=8), out=run.folder / "plans" / "plan.json")
    first = run_report.image_grids(run)
    assert set(first) == {"full precision", "searched"}

    def raises(*_, **__):
        raise SearchedAgainError

    monkeypatch.setattr(run.subject, "sample", raises)
    again = run_report.image_grids(run)
    assert all((again[name] == first[name]).all() for name in first)
    assert other.hash != found.plan.hash
    other.save(run.folder / "plans" / "uniform.json")
    with pytest.raises(SearchedAgainError):
        run_report.image_grids(run)


def test_a_damaged_result_is_searched_for_again(run: Run) -> None:
    fit(run)
    found = search_run(run, Budget(bits=3.0), CONFIG)
    (path,) = (run.folder / "searches").iterdir()
    path.write_text(path.read_text().replace("exact", "exalt", 1) if "exact" in path.read_text() else path.read_text()[:-9])
    again = search_run(run, Budget(bits=3.0), CONFIG)
    assert again.plan.hash == found.plan.hash
    assert Path(path).exists()
