"""The design that looks at what it has measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from sedaq.errors import InputError
from sedaq.sensitivity.probing import adaptive
from sedaq.sensitivity.probing.adaptive import Adaptive
from sedaq.sensitivity.probing.measurer import Measurer
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.run import Run
from sedaq.storage import read_json, read_records

from ..conftest import SETTINGS


@pytest.fixture
def small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"START": 9, "ROUND": 4, "STRATIFIED": 1, "MIN_PLANS": 14, "N_POOL": 24, "MIN_IMAGES": 8}.items():
        monkeypatch.setattr(adaptive, name, value)


@pytest.fixture
def fresh(run: Run, subject: str) -> Run:
    """A run with encodings and no probe."""
    (run.folder / "probes.jsonl").unlink()
    return Run.open(run.folder, subject=subject)


def plans_of(folder: Path) -> list[tuple[str, int]]:
    return [(record["plan_hash"], record["n_images"]) for record in read_records(folder / "probes.jsonl", "probe")]


@pytest.mark.usefixtures("small_rounds")
def test_it_asks_for_new_plans_measures_few_images_first_and_the_front_again(fresh: Run, subject: str) -> None:
    probe(subject, fresh.folder, n_configs=20, design="auto", settings=SETTINGS)
    records = read_records(fresh.folder / "probes.jsonl", "probe")
    few, all_ = ([r for r in records if r["n_images"] == n] for n in (8, 16))
    outcome = read_json(fresh.folder / "probing.json", "probing")
    assert len({r["plan_hash"] for r in records}) == outcome["n_plans"] <= 20
    assert few and all_ and len({r["plan_hash"] for r in few}) == len(few)
    assert {r["plan_hash"] for r in all_} <= {r["plan_hash"] for r in few}
    assert len(outcome["rankings"]) >= 1 and all(-1 <= r <= 1 for r in outcome["rankings"])


def test_a_round_names_no_plan_twice(fresh: Run) -> None:
    """What the design proposes may be the stratified plan that comes next."""
    with Measurer(Prober(fresh)) as measurer:
        first = Adaptive(fresh, measurer, 20)._next_stratified(2)
        others = Adaptive(fresh, measurer, 20)._next_stratified(3, besides=first)
    assert len(others) == 3 and not any(plan in first for plan in others)


@pytest.mark.usefixtures("small_rounds")
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(fresh: Run, subject: str, tmp_path: Path) -> None:
    shutil.copytree(fresh.folder, tmp_path / "other")
    probe(subject, fresh.folder, n_configs=18, design="auto", settings=SETTINGS)
    whole = plans_of(fresh.folder)
    other = Run.open(tmp_path / "other", subject=subject)
    with Measurer(Prober(other)) as measurer:
        for count, _ in enumerate(Adaptive(other, measurer, 18).measure()):
            if count == 11:
                break
    assert plans_of(other.folder) == whole[:12]
    probe(subject, other.folder, n_configs=18, design="auto", settings=SETTINGS)
    assert plans_of(other.folder) == whole


@pytest.mark.usefixtures("small_rounds", "nothing_shipped")
def test_it_stops_when_the_ranking_is_stable_and_not_before(fresh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    agreements = iter([0.99, 0.5, 0.96, 0.97, 0.99])
    monkeypatch.setattr(Adaptive, "_agreement", lambda self, surrogates: next(agreements))
    with Measurer(Prober(fresh)) as measurer:
        design = Adaptive(fresh, measurer, 60)
        assert sum(design.measure()) == design.outcome.n_plans
    outcome = design.outcome
    assert outcome.stable and outcome.rankings == [0.99, 0.5, 0.96, 0.97]
    assert outcome.n_plans == 9 + 3 * 4


@pytest.mark.usefixtures("small_rounds")
def test_proposals_are_on_the_front_of_their_law(fresh: Run) -> None:
    """No plan of the same bytes or fewer has a smaller sum of priced terms: checked against all plans of three layers."""
    with Measurer(Prober(fresh)) as measurer:
        design = Adaptive(fresh, measurer, 20)
        list(design._measured(design._next_stratified(9), 8))
        surrogate = design._surrogates()[0]
        monkey = np.random.default_rng(0)

        class Even:
            """No jitter: one price for all layers."""

            uniform = staticmethod(monkey.uniform)
            normal = staticmethod(lambda size: np.zeros(size))

        picks = design._on_front(surrogate, Even())  # type: ignore[arg-type]
    grids = np.stack(np.meshgrid(*[range(len(menu)) for menu in design.menus], indexing="ij"), -1).reshape(-1, len(design.menus))
    rows = np.arange(len(design.menus))
    harm, size = surrogate.excess(design.errors[rows, grids]), design.sizes[rows, grids].sum(1)
    own = int(np.flatnonzero((grids == picks).all(1))[0])
    assert not ((size <= size[own]) & (harm < harm[own] * (1 - 1e-9))).any()


def test_an_unknown_design_is_refused_before_any_work(subject: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`design` 'best' is unknown"):
        probe(subject, tmp_path / "run", design="best")
    assert not (tmp_path / "run").exists()
