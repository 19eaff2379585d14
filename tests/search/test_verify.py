"""Plans measured beside uniform on equal noise: which is handed out, and what the predictor learns of it."""

from __future__ import annotations

import numpy as np
import pytest

from sedaq.aq.formats import Format
from sedaq.aq.plans.plan import Plan
from sedaq.errors import InputError, SedaqError
from sedaq.search.find import find_plan
from sedaq.search.verify import Rung, Verification, loss_and_distance

from .conftest import FakeMeasurement, FakePredictor, FakeProber, Value


def test_a_verification_of_one_sampling_says_nothing() -> None:
    with pytest.raises(InputError, match="`verify` 1: .*use 0 or at least 2"):
        Verification(1, FakeProber(len))


def test_verification_hands_out_the_best_measured_candidate(subject, menu, predictor) -> None:
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    prober = FakeProber(lambda formats: 1.0 if formats == plain.plan.formats else 2.0 if formats != plain.uniform.formats else 3.0)
    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=Verification(4, prober, rungs=(Rung(64, 5),)))
    assert found.plan.formats == plain.plan.formats and found.solver == plain.solver
    assert len(prober.measured) == 4 == len({str(formats) for formats in prober.measured})
    assert found.difference_ci == pytest.approx((-2.1, -1.9))
    assert found.measured == {"metrics": {"fid": {"value": 1.0, "se": 0.1}}, "n_images": 64, "steps": 5} == found.plan.measured
    assert found.uniform_measured is not None and found.uniform_measured["metrics"]["fid"]["value"] == 3.0


def test_verification_follows_the_predictors_metric_where_higher_is_better(subject, menu, predictor) -> None:
    predictor.metric = "psnr"
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    assert plain.predicted["value"] < 0, "what the predictor has as lower-is-better, in the metric's own direction"
    prober = FakeProber(lambda formats: 10.0 if formats in (plain.plan.formats, plain.uniform.formats) else 30.0, "psnr")
    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=Verification(4, prober))
    assert found.measured is not None and found.measured["metrics"]["psnr"]["value"] == 30.0
    assert found.difference_ci == pytest.approx((-20.1, -19.9)), "below zero is better"


def test_verification_prefers_another_candidate_where_it_measures_better(subject, menu, predictor) -> None:
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    prober = FakeProber(lambda formats: 3.0 if formats in (plain.plan.formats, plain.uniform.formats) else 1.0)
    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=Verification(3, prober))
    assert found.plan.formats not in (plain.plan.formats, plain.uniform.formats)
    assert found.predicted["value"] >= plain.predicted["value"]


@pytest.mark.parametrize("ruined", [["first"], ["first", "others"], ["uniform"]])
def test_plans_that_overflow_do_not_end_a_verification_but_uniform_does(ruined, subject, menu, predictor) -> None:
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)

    def cost(formats: dict[str, Format]) -> float:
        kind = "uniform" if formats == plain.uniform.formats else "first" if formats == plain.plan.formats else "others"
        return float("nan") if kind in ruined else {"uniform": 3.0, "first": 1.0, "others": 2.0}[kind]

    how = {"n_trials": 24, "verification": Verification(4, FakeProber(cost))}
    if ruined == ["uniform"]:
        with pytest.raises(
            SedaqError, match=r"the uniform plan of 2\.\d+ bits.*makes the model overflow; search for more bits, or without `verify`"
        ):
            find_plan(subject, menu, predictor, bits=2.4, **how)
        return
    found = find_plan(subject, menu, predictor, bits=2.4, **how)
    if "others" in ruined:
        assert found.plan.formats == plain.uniform.formats
        assert any("under all 3 others the model overflows" in note for note in found.plan.provenance["notes"])
    else:
        assert found.measured is not None and found.measured["metrics"]["fid"]["value"] == 2.0


def test_uniform_is_handed_out_where_nothing_beats_it(subject, menu, predictor) -> None:
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    prober = FakeProber(lambda formats: 1.0 if formats == plain.uniform.formats else 2.0)
    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=Verification(3, prober))
    assert found.solver == "uniform" == found.plan.provenance["solver"]
    assert found.plan.formats == found.uniform.formats and found.measured == found.uniform_measured
    assert found.difference_ci == (0.0, 0.0)
    assert any("no searched plan is better than uniform" in note and "worse by 1 (" in note for note in found.plan.provenance["notes"])


def of_plan(excess: float, se: float, distance: float) -> FakeMeasurement:
    """As a run measures: beside a full precision of 10."""
    return FakeMeasurement({"fid": Value(10 + excess), "fid_excess": Value(excess, se), "feature_distance": Value(distance)})


def test_a_loss_counts_where_it_is_clear_of_noise_and_nearness_after_it() -> None:
    assert loss_and_distance(of_plan(0.5, 0.1, 0.02), "fid") == (0.5, 0.02)
    assert loss_and_distance(of_plan(0.15, 0.1, 0.02), "fid") == loss_and_distance(of_plan(-0.7, 0.1, 0.02), "fid") == (0.0, 0.02)
    assert loss_and_distance(of_plan(np.nan, 0.1, 0.02), "fid") == (np.inf, np.inf)
    assert loss_and_distance(of_plan(0.5, 0.1, 0.02), "feature_distance") == (0.02, 0.0)
    assert loss_and_distance(FakeMeasurement({"psnr": Value(20.0)}), "psnr") == (-20.0, 0.0), "higher is better"


def test_nothing_is_gained_by_images_that_are_nearer_to_real_ones_than_full_precisions(subject, menu, predictor) -> None:
    """As measured at 4.5 bits of mnist-unet in 6 steps of sampling; in 20 steps that uniform plan is 18 above full precision."""
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)

    class Measuring(FakeProber):
        def measure(self, plans, rung):
            known = {str(plain.uniform.formats): (-0.69, 0.15, 0.001), str(plain.plan.formats): (0.06, 0.08, 0.0003)}
            return [of_plan(*known.get(str(formats), (0.03, 0.08, 0.0004))) for formats in plans]

    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=Verification(4, Measuring(None)))
    assert found.plan.formats == plain.plan.formats
    assert found.difference_ci == pytest.approx((0.65, 0.85))
    (note,) = [note for note in found.plan.provenance["notes"] if "uniform" in note]
    assert note.startswith("by fid alone uniform is better by 0.75 (0.65 to 0.85); what counts is a loss beside full precision")


def test_what_is_measured_teaches_the_predictor_which_searches_again(subject, menu, predictor) -> None:
    """Measured, layer 0 is worth nothing; the predictor that learns it finds another plan, which is measured, too, and wins."""
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    truth = FakePredictor({**predictor.sensitivity, "0": 0.0, "1": 50.0})
    entries = {name: {entry.format: entry for entry in entries} for name, entries in menu.items()}

    def score(formats) -> float:
        return float(truth.predict([{name: entries[name][format] for name, format in formats.items()}])[0][0])

    prober, taught = FakeProber(score), []

    def refit(measured) -> FakePredictor:
        taught.append(len(measured))
        return truth

    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=Verification(8, prober, refit))
    assert taught == [5] and len(prober.measured) == 8, "uniform and four plans first"
    assert found.plan.formats != plain.plan.formats
    assert found.measured is not None and found.uniform_measured is not None
    values = [score(formats) for formats in prober.measured]
    assert found.measured["metrics"]["fid"]["value"] == min(values) < score(plain.plan.formats)
    few = FakeProber(score)
    find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=Verification(2, few, refit))
    assert len(few.measured) == 2


def test_plans_that_members_of_the_ensemble_would_choose_are_measured(subject, menu, predictor) -> None:
    """One member is right, the mean is not: what hangs on it is settled by measuring, and only there."""

    class Divided(FakePredictor):
        def member_costs(self, name, entry):
            return self.additive_cost(name, entry) * np.array([1.0, 0.01, 100.0] if name in ("1", "3") else [1.0, 1.0, 1.0])

    divided = Divided(predictor.sensitivity)
    right = FakePredictor({n: s * (100 if n in ("1", "3") else 1) for n, s in predictor.sensitivity.items()}, interaction=0.0)
    entries = {name: {entry.format: entry for entry in entries} for name, entries in menu.items()}

    def score(formats) -> float:
        return float(right.predict([{name: entries[name][format] for name, format in formats.items()}])[0][0])

    prober = FakeProber(score)
    found = find_plan(subject, menu, divided, bits=2.4, n_trials=8, verification=Verification(4, prober))
    best = find_plan(subject, menu, right, bits=2.4, solver="exact").plan
    assert found.plan.formats == best.formats != find_plan(subject, menu, divided, bits=2.4, n_trials=8).plan.formats
    assert found.solver == "ensemble" and len(prober.measured) == 4


def test_a_ruined_plan_is_called_ruined(subject, menu, predictor) -> None:
    class Ruining(FakeProber):
        def measure(self, plans, rung):
            found = super().measure(plans, rung)
            for measurement in found:
                object.__setattr__(measurement, "ruined", True)
            return found

    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24, verification=Verification(3, Ruining(lambda _: 1.0)))
    assert found.measured["ruined"] and any(note.startswith("the plan is ruined") for note in found.plan.provenance["notes"])
    assert Plan.from_json(found.plan.to_json()) == found.plan
