from __future__ import annotations

import json
from functools import partial

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from sedaq.aq.formats import Format
from sedaq.aq.plans.plan import Plan
from sedaq.errors import InputError, SedaqError
from sedaq.reports.summaries import front_table
from sedaq.search.find import find_front, find_plan
from sedaq.search.verify import Rung, Verification, loss_and_distance

from .conftest import FakeMeasurement, FakePredictor, FakeProber, Value

INT8 = Format.parse("int8")
KEYS = {"bits_per_weight", "size_bytes", "predicted", "measured", "uniform_measured", "difference_ci", "solver", "plan"}


@pytest.mark.parametrize("budget", [{"bits": 2.3}, {"size_bytes": 25_000}, {"bits": 3.1, "size_bytes": 24_000}, {"size_bytes": 10**9}])
@pytest.mark.parametrize("solver", ["exact", "auto"])
def test_a_plan_is_within_its_budgets_and_no_larger_than_uniform(subject, menu, predictor, budget, solver) -> None:
    found = find_plan(subject, menu, predictor, **budget, solver=solver, n_trials=24)
    assert found.plan.bits_per_weight <= budget.get("bits", 32)
    if "size_bytes" in budget:
        assert found.plan.size_bytes <= found.uniform.size_bytes <= budget["size_bytes"]
    if list(budget) == ["bits"]:
        assert found.plan.bits_per_weight <= found.uniform.bits_per_weight
    found.plan.validate(subject)
    assert found.to_dict().keys() >= KEYS
    assert found.plan.budget == {"bits_per_weight" if key == "bits" else key: value for key, value in budget.items()}
    assert Plan.from_json(json.loads(json.dumps(found.to_dict()["plan"], allow_nan=False))) == found.plan
    assert found.plan.provenance.keys() >= {"solver", "gap", "seed", "trials", "notes"}


class Times:
    """A millisecond a layer and what lies between its bits and 8, so that few bits are slow; one for the rest."""

    rest = 10**6

    def of(self, name: str, format: Format) -> int:
        bits = 16 if format.kind == "asis" else 8 if format.kind == "int8" else format.n_codebooks * format.code_bits / format.group_size
        return int(1e6 + 1e5 * abs(bits - 8))


@pytest.mark.parametrize("budget", [{"ms_per_step": 8.5}, {"ms_per_step": 9.9, "bits": 2.8}, {"ms_per_step": 10, "size_bytes": 30_000}])
@pytest.mark.parametrize("solver", ["exact", "auto"])
def test_milliseconds_a_step_are_a_budget_beside_others(subject, menu, predictor, budget, solver) -> None:
    found = find_plan(subject, menu, predictor, **budget, solver=solver, n_trials=16, times=Times())
    ms = (Times.rest + sum(Times().of(*pair) for pair in found.plan.formats.items())) / 1e6
    assert ms == pytest.approx(found.predicted["ms_per_step"]) and ms <= budget["ms_per_step"]
    assert found.plan.bits_per_weight <= budget.get("bits", 32) and found.plan.size_bytes <= budget.get("size_bytes", 10**9)
    assert found.uniform_predicted["ms_per_step"] <= budget["ms_per_step"] == found.plan.budget["ms_per_step"]


def test_milliseconds_that_cannot_be_kept_are_refused(subject, menu, predictor) -> None:
    with pytest.raises(InputError, match=r"6 ms a step cannot be met; the least reachable is 7\.\d+ ms") as refused:
        find_plan(subject, menu, predictor, ms_per_step=6, times=Times())
    least = float(str(refused.value).partition("reachable is ")[2].split()[0])
    assert find_plan(subject, menu, predictor, ms_per_step=least, times=Times(), solver="exact").predicted["ms_per_step"] <= least
    with pytest.raises(InputError, match=r"budgets of 2 bits per weight and 8\.\d+ ms a step cannot be met together"):
        find_plan(subject, menu, predictor, bits=2, ms_per_step=8.2, times=Times())
    with pytest.raises(InputError, match="needs times="):
        find_plan(subject, menu, predictor, ms_per_step=8.2)


def test_the_same_seed_gives_the_same_plan(subject, menu, predictor) -> None:
    first, second = (find_plan(subject, menu, predictor, bits=2.2, n_trials=24, seed=5) for _ in range(2))
    assert first == second


def test_all_tight_sizes_are_kept(subject, menu, predictor) -> None:
    for size in range(19_500, 21_000, 97):
        found = find_plan(subject, menu, predictor, size_bytes=size, solver="exact")
        assert found.plan.size_bytes <= found.uniform.size_bytes <= size


def test_layers_without_a_format_within_the_rate_are_noted(subject, menu, predictor) -> None:
    found = find_plan(subject, menu, predictor, bits=1.8, solver="exact")
    small = subject.layers[-1].name
    if 8 * menu[small][0].size_bytes / subject.layers[-1].n_weights > 1.5 and found.plan.formats[small] == menu[small][0].format:
        assert any(note.startswith(f"{small}: no format within 1.5 bits") for note in found.plan.provenance["notes"])


def test_pins_keeps_ties_and_rates_are_respected(subject, menu, predictor) -> None:
    found = find_plan(
        subject, menu, predictor, bits=5.0, pins={"0": INT8}, keep=["5"], ties=["[23]"], min_rate=2.0, max_rate=4.0, n_trials=24
    )
    formats = found.plan.formats
    assert (formats["0"], str(formats["5"]), formats["2"] == formats["3"]) == (INT8, "asis", True)
    rates = {entry.format: entry.rate for name in "1234" for entry in menu[name]}
    assert all(2.0 <= rates[formats[name]] <= 4.0 for name in "1234")
    notes = found.plan.provenance["notes"]
    assert {"0: pinned to int8", "5: pinned to asis", "tied: 2, 3", "min_rate 2", "max_rate 4"} <= set(notes)


def test_a_pin_holds_for_the_whole_tie_and_overlapping_ties_are_one(subject, menu, predictor) -> None:
    found = find_plan(subject, menu, predictor, bits=7.0, pins={"1": INT8}, ties=["[12]", "[23]"], solver="exact")
    assert [found.plan.formats[name] for name in "123"] == [INT8] * 3


def test_unknown_settings_are_refused(subject, menu, predictor) -> None:
    for find in (partial(find_plan, bits=7.0), find_front):
        with pytest.raises(TypeError, match="unexpected keyword argument 'pin'"):
            find(subject, menu, predictor, pin={"1": INT8})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pins": {"nothing*": INT8}}, r"`pin` nothing\*: no layer has such a path"),
        ({"keep": ["x"]}, "`keep` x: no layer"),
        ({"ties": ["y"]}, "`tie` y: no layer"),
        ({"pins": {"0": INT8, "[01]": Format.parse("1x4g4")}}, r"layer 0: `pin` 0=int8 and `pin` \[01\]=1x4g4 contradict each other"),
        ({"pins": {"0": INT8}, "keep": ["0"]}, "layer 0: `pin` 0=int8 and `keep` 0 contradict"),
        ({"pins": {"2": INT8}, "keep": ["3"], "ties": ["[23]"]}, "contradict"),
        ({"pins": {"0": Format.parse("1x4g9t")}}, "layer 0: format 1x4g9t cannot fit"),
        ({"min_rate": 3.0, "max_rate": 2.0}, "`min_rate` 3 is above `max_rate` 2"),
        ({"min_rate": 5.0, "max_rate": 6.0}, "none of its rates .* is within 5 to 6"),
        ({"keep": ["*"]}, "cannot be met; the least reachable is 16.0000 bits"),
        ({"bits": 0.5}, "cannot be met; the least reachable"),
        ({"bits": None}, "no budget is given"),
        ({"solver": "magic"}, "solver 'magic' is unknown"),
    ],
)
def test_contradictions_are_explained(subject, menu, predictor, settings, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_plan(subject, menu, predictor, **{"bits": 3.0, **settings})
    assert "\n" not in str(caught.value)


def test_a_verification_of_one_sampling_says_nothing() -> None:
    with pytest.raises(InputError, match="`verify` 1: .*use 0 or at least 2"):
        Verification(1, FakeProber(len))


def test_identical_pins_are_no_contradiction(subject, menu, predictor) -> None:
    assert find_plan(subject, menu, predictor, bits=9.0, pins={"0": INT8, "[0]": INT8}, solver="exact").plan.formats["0"] == INT8


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


def test_a_front_is_ascending_within_its_budgets_and_never_predicted_worse(subject, menu, predictor) -> None:
    front = find_front(subject, menu, predictor, n_trials=16)
    assert [found.plan.budget["bits_per_weight"] for found in front] == [1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4]
    for found in front:
        assert found.plan.bits_per_weight <= found.plan.budget["bits_per_weight"]
        assert found.predicted["value"] <= found.uniform_predicted["value"]
    values = [found.predicted["value"] for found in front]
    assert values == sorted(values, reverse=True)


def test_a_front_leaves_out_what_cannot_be_reached(subject, menu, predictor) -> None:
    front = find_front(subject, menu, predictor, max_rate=2.0, solver="exact")
    assert max(found.plan.budget["bits_per_weight"] for found in front) <= 2.25
    with pytest.raises(InputError, match=r"none of the budgets of 0\.5, 1 bits can be met"):
        find_front(subject, menu, predictor, bits=[0.5, 1.0])


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


def test_a_risk_prefers_plans_that_the_predictor_is_sure_of(subject, menu, predictor) -> None:
    class Unsure(FakePredictor):
        """Knows nothing of plans that give layer 1 few bits."""

        def predict(self, choices):
            mean, _ = super().predict(choices)
            return mean, np.array([5.0 * mean.max() if choice["1"].rate < 3 else 0.0 for choice in choices])

    unsure = Unsure({**predictor.sensitivity, "1": 0.01})
    bold, careful = (find_plan(subject, menu, unsure, bits=2.4, n_trials=24, risk=risk) for risk in (0.0, 1.0))
    rate = {entry.format: entry.rate for entry in menu["1"]}
    assert rate[bold.plan.formats["1"]] < 3 <= rate[careful.plan.formats["1"]]
    assert bold.plan.provenance["risk"] == 0 and careful.predicted["std"] == 0 < bold.predicted["std"]


def test_a_storage_keeps_studies_to_look_at_and_changes_nothing(subject, menu, predictor, tmp_path) -> None:
    plain = find_plan(subject, menu, predictor, bits=2.4, n_trials=16)
    journal, database = str(tmp_path / "new" / "studies.log"), f"sqlite:///{tmp_path / 'studies.db'}"
    for storage in (journal, journal, database):
        assert find_plan(subject, menu, predictor, bits=2.4, n_trials=16, storage=storage) == plain
    find_front(subject, menu, predictor, bits=[2.0, 2.4], n_trials=8, storage=database)
    backend = optuna.storages.JournalStorage(JournalFileBackend(journal))
    (name,) = optuna.get_all_study_names(backend)
    assert name.startswith("small, 2.") and name.endswith(" bits, seed 0")
    study = optuna.load_study(study_name=name, storage=backend)
    assert set(study.trials[0].params) == set(menu), "they are to be read by people"
    assert len(study.trials) == 16 and study.best_value >= plain.predicted["value"]
    assert "small, front, seed 0" in optuna.get_all_study_names(database)
    with pytest.raises(InputError, match="`storage` nonsense://x: .*; give a journal file or a URL"):
        find_plan(subject, menu, predictor, bits=2.4, n_trials=16, storage="nonsense://x")


def test_a_new_budget_on_the_front_begins_from_it(subject, menu, predictor) -> None:
    front = find_front(subject, menu, predictor, bits=[1.75, 2.5], n_trials=30)
    assert all(set(found.plan.provenance["gains"]) == {"front", "swaps"} for found in front)
    assert find_front(subject, menu, predictor, bits=[1.75, 2.5], n_trials=30) == front


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


def test_full_precision_stands_beside_what_is_predicted(subject, menu, predictor) -> None:
    predictor.full_precision = 4.5
    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    assert found.predicted["full_precision"] == 4.5
    console = Console(width=200, record=True)
    console.print(front_table([found]))
    assert "4.50 (full precision)" in console.export_text()
