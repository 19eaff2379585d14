"""Successive halving, against a plain account of its rule."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend

from sedaq.aq.formats import Format
from sedaq.errors import InputError
from sedaq.search.config import SearchConfig
from sedaq.search.evaluate import Candidate
from sedaq.search.find import find_plan
from sedaq.search.halving import halve
from sedaq.search.verify import FACTOR, Rung, Verification, rungs_to

from .conftest import FakeMeasurement, FakePredictor, FakeProber, Value

SHORT, LONG = Rung(8, tuned_steps=20), Rung(32, tuned_steps=180)
RUNGS = (SHORT, Rung(16, tuned_steps=60), LONG)


class Racing:
    """Plans are named by a number; what they cost on each rung is a table."""

    def __init__(self, costs: np.ndarray) -> None:
        self.costs, self.asked = costs, []

    def measure(self, plans: Sequence[Any], rung: Rung) -> list[FakeMeasurement]:
        self.asked.append((rung, [plan["number"] for plan in plans]))
        return [FakeMeasurement({"fid": Value(float(self.costs[RUNGS.index(rung), plan["number"]]))}) for plan in plans]

    def worsening(self, a: Any, b: Any, metric: str) -> tuple[float, float, float]:
        raise NotImplementedError


def raced(costs: np.ndarray) -> tuple[Racing, list[int]]:
    prober = Racing(costs)
    candidates = {Candidate((number,), 0.0, 0.0, 0.0, "exact"): {"number": number} for number in range(costs.shape[1])}
    plans: Any = candidates
    verification = Verification(9, prober, rungs=RUNGS)
    first = dict(zip(candidates, verification.measure(list(plans.values())), strict=True))
    return prober, [candidate.choice[0] for candidate in halve(verification, plans, first, "fid")]


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_plan_goes_on_that_is_in_the_best_third_of_those_so_far(n: int, seed: int) -> None:
    costs = np.random.default_rng(seed).normal(size=(3, n))
    left, expected = list(range(n)), [list(range(n))]
    for row in costs[:-1]:
        left = [plan for k, plan in enumerate(left) if sum(row[other] < row[plan] for other in left[: k + 1]) < max(1, (k + 1) // FACTOR)]
        expected.append(left)
    prober, finals = raced(costs)
    assert [numbers for _, numbers in prober.asked] == expected and [rung for rung, _ in prober.asked] == list(RUNGS)
    assert finals == expected[-1] and finals


@pytest.mark.parametrize("worst", [np.inf, np.nan])
def test_what_is_no_number_is_left_behind_but_something_is_handed_out(worst: float) -> None:
    assert raced(np.array([[worst, 1.0], [worst, 1.0], [worst, 1.0]]))[1][-1] == 1
    assert raced(np.full((3, 1), worst))[1] == [0]


def test_rungs() -> None:
    assert rungs_to(Rung(64, 5, 20), 300) == (Rung(64, 5, 20), Rung(128, 5, 60), Rung(256, 5, 180), Rung(512, 5, 300))
    assert rungs_to(SHORT, 180) == RUNGS
    assert rungs_to(SHORT, 20) == (SHORT,)
    with pytest.raises(InputError, match="`tune_steps`: got 19; plans were probed after 20 steps of tuning, give as many or more"):
        rungs_to(SHORT, 19)


class Tuning(FakeProber):
    """After a short tuning plans cost the opposite of what they cost after a long one."""

    def measure(self, plans: Sequence[Mapping[str, Format]], rung: Rung) -> list[FakeMeasurement]:
        sign = 1 if rung == LONG else -1
        return [FakeMeasurement({"fid": Value(sign * found.metrics["fid"].value)}) for found in super().measure(plans, rung)]


def test_the_last_rung_decides(subject, menu, predictor, tmp_path) -> None:
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    known, later = {str(plain.plan.formats): 1.0, str(plain.uniform.formats): 3.0}, itertools.count()
    prober, taught = Tuning(lambda formats: known.setdefault(str(formats), 2.0 - 0.01 * next(later))), []

    def refit(measured: Sequence[FakeMeasurement]) -> Any:
        taught.append([found.metrics["fid"].value for found in measured])
        return predictor

    verification = Verification(8, prober, refit, rungs=(SHORT, LONG))
    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=verification, storage=str(tmp_path / "studies.log"))
    assert found.plan.formats == plain.plan.formats, "the first always goes on"
    assert found.measured == {"metrics": {"fid": {"value": 1.0, "se": 0.1}}, "n_images": 32, "steps": None, "tuned_steps": 180}
    assert found.uniform_measured["metrics"]["fid"]["value"] == 3.0 and found.difference_ci == pytest.approx((-2.1, -1.9))
    assert taught and all(value < 0 for values in taught for value in values), "the predictor is taught by the first rung alone"
    backend = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "studies.log")))
    (name,) = [name for name in optuna.get_all_study_names(backend) if name.startswith("small, verification at 2.")]
    study = optuna.load_study(study_name=name, storage=backend)
    states = [trial.state.name for trial in study.trials]
    assert states[0] == "COMPLETE" and "PRUNED" in states and study.best_trial.number == 0


def test_uniform_is_handed_out_where_it_is_best_in_the_end(subject, menu, predictor) -> None:
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    prober = Tuning(lambda formats: 1.0 if formats == plain.uniform.formats else 2.0)
    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=Verification(4, prober, rungs=(SHORT, LONG)))
    assert found.plan.formats == plain.uniform.formats and found.solver == "uniform"


def test_the_plan_of_another_search_comes_to_the_end_of_the_race(subject, menu, predictor) -> None:
    """It is the worst on the first rung and the best on the last one."""
    other = find_plan(subject, menu, FakePredictor({name: 1.0 for name in predictor.sensitivity}), bits=2.4, solver="exact").plan
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    assert other.formats not in (plain.plan.formats, plain.uniform.formats)
    prober = Tuning(lambda formats: 1.0 if formats == other.formats else 3.0 if formats == plain.uniform.formats else 2.0)
    race = {"verification": Verification(4, prober, rungs=(SHORT, LONG)), "n_trials": 24}
    found = find_plan(subject, menu, predictor, bits=2.4, entrants=[other.formats], **race)
    assert found.plan.formats == other.formats and found.plan.provenance["solver"] == "other search"
    without = find_plan(subject, menu, predictor, bits=2.4, **race)
    assert without.plan.formats != other.formats
    with pytest.raises(InputError, match="layer 0: 3x3g5 is not among the formats that it may get"):
        find_plan(subject, menu, predictor, bits=2.4, entrants=[{**other.formats, "0": Format.parse("3x3g5")}], **race)


@pytest.mark.parametrize("settings", [{"tuned": True}, {"verify": 8}, {}])
def test_long_tunings_are_of_a_verification_of_tuned_plans(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="`tune_steps`: .* give `tuned` and `verify`, too"):
        SearchConfig(tune_steps=300, **settings)
