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
from sedaq.errors import InputError
from sedaq.reports.summaries import front_table
from sedaq.search.find import find_front, find_plan

from .conftest import FakePredictor

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


def test_identical_pins_are_no_contradiction(subject, menu, predictor) -> None:
    assert find_plan(subject, menu, predictor, bits=9.0, pins={"0": INT8, "[0]": INT8}, solver="exact").plan.formats["0"] == INT8


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


def test_full_precision_stands_beside_what_is_predicted(subject, menu, predictor) -> None:
    predictor.full_precision = 4.5
    found = find_plan(subject, menu, predictor, bits=2.4, n_trials=24)
    assert found.predicted["full_precision"] == 4.5
    console = Console(width=200, record=True)
    console.print(front_table([found]))
    assert "4.50 (full precision)" in console.export_text()
