"""What `sedaq search` does beyond find_plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sedaq.aq.activations.quantizer import SCHEMES, Activation
from sedaq.aq.export.apply import pipeline_bytes
from sedaq.aq.formats import AS_IS
from sedaq.aq.plans.menu import heuristic_menus
from sedaq.errors import InputError
from sedaq.models.loading import load
from sedaq.search import bench, verb
from sedaq.search.config import SearchConfig
from sedaq.search.engine import SearchResult
from sedaq.search.find import find_plan
from sedaq.search.verb import SPARE_BYTES, find_within_pipeline
from sedaq.storage import read_json

from .conftest import FakePredictor


@pytest.fixture
def run(pipeline_folder) -> Any:
    return SimpleNamespace(subject=load(pipeline_folder))


@pytest.fixture
def find(run):
    menus, predictor = heuristic_menus(run.subject), FakePredictor({})

    def find(size_bytes: int, verified: bool) -> SearchResult:
        return find_plan(run.subject, menus, predictor, size_bytes=size_bytes, solver="exact")

    return find


@pytest.mark.slow
def test_a_pipeline_is_within_its_bytes_with_all_that_is_written(run, find) -> None:
    small, whole = (find(size, False).plan for size in (28_000, 10**9))
    least, most = (pipeline_bytes(run.subject, plan) + SPARE_BYTES for plan in (small, whole))
    sizes = []
    for limit in (least + (most + 3000 - least) * k // 6 for k in range(7)):
        found = find_within_pipeline(run, limit, find)
        taken = pipeline_bytes(run.subject, found.plan)
        assert taken <= limit
        sizes.append(found.plan.size_bytes)
    assert sizes == sorted(sizes) and small.size_bytes - 500 <= sizes[0] < sizes[3] < sizes[-1]
    assert sizes[-1] >= 0.98 * whole.size_bytes


def test_a_plan_whose_text_grows_is_searched_again_with_less(run, find) -> None:
    """As verification's measurements make it grow, here by more than what is spared."""
    calls = []

    def growing(size_bytes: int, verified: bool) -> SearchResult:
        calls.append(size_bytes)
        found = find(size_bytes, verified)
        found.plan.provenance["notes"] = ["x" * (3000 if verified else 0)]
        return found

    first = find(10**9, False)
    limit = pipeline_bytes(run.subject, first.plan) + 1500
    found = find_within_pipeline(run, limit, growing)
    assert len(calls) >= 3 and calls[-1] < calls[1]
    assert pipeline_bytes(run.subject, found.plan) <= limit


def test_what_cannot_be_is_refused(run, find) -> None:
    with pytest.raises(InputError, match="^the budget of 1000 bytes cannot be met; the least"):
        find_within_pipeline(run, 1000, find)
    with pytest.raises(
        InputError, match=r"`pipeline_size` 30000: for the denoiser's file, the budget of \d+ bytes cannot be met; the least"
    ):
        find_within_pipeline(run, 30_000, find)
    with pytest.raises(InputError, match="use `size` for the denoiser's file"):
        find_within_pipeline(SimpleNamespace(subject=SimpleNamespace(folder=None, components=(), name="bare")), 10**6, find)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_budgets_hold_with_the_ranges_of_rounded_inputs(scheme, run) -> None:
    menus, predictor = heuristic_menus(run.subject), FakePredictor({})
    activations = {layer.name: Activation(8, scheme) for layer in run.subject.layers}
    plain = find_plan(run.subject, menus, predictor, size_bytes=40_000, solver="exact").plan
    found = find_plan(run.subject, menus, predictor, size_bytes=40_000, solver="exact", activations=activations)
    assert found.plan.size_bytes <= 40_000 and found.uniform.size_bytes <= 40_000
    for plan in (found.plan, found.uniform):
        with_codes = {name for name, format in plan.formats.items() if format != AS_IS}
        assert plan.activations == {name: choice for name, choice in activations.items() if name in with_codes} != {}
    ranges = found.plan.size_bytes - replace(found.plan, activations={}).with_activations(run.subject, {}).size_bytes
    assert (ranges > 0) == SCHEMES[scheme].static
    assert found.plan.bits_per_weight <= plain.bits_per_weight + 1e-9


def test_a_damaged_comparison_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interval = {"value": 1.0, "ci": [0.5, 1.5]}
    row = {"bits": 2.0, "method": "uniform", "bits_per_weight": 1.9, "size_bytes": 9, "fid": 3.0, "solver": None}
    row |= {name: interval for name in ("excess", "over_uniform", "over_searched")}
    conditions, path = {"n_images": 8, "steps": 2, "seeds": 3, "metric": "fid"}, tmp_path / "contest.json"
    bench._keep(path, [row], conditions)
    bench._keep(path, [{**row, "bits": 3.0}], conditions)
    assert [kept["bits"] for kept in read_json(path, "contest")["rows"]] == [2.0, 3.0] and caplog.text == ""
    path.write_bytes(path.read_bytes()[:-20])
    bench._keep(path, [{**row, "bits": 4.0}], conditions)
    assert [kept["bits"] for kept in read_json(path, "contest")["rows"]] == [4.0]
    assert "rows of other budgets are lost" in caplog.text


@pytest.mark.parametrize("by_prior", [True, False])
def test_probes_that_cannot_be_read_are_told_unless_a_prior_stands_for_them(by_prior: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("probes differ in field 'extractor'")

    monkeypatch.setattr(verb, "read_probes", refuse)
    predictor: Any = SimpleNamespace(
        metric="fid", tuned_steps=0 if by_prior else 20, by_prior=by_prior, notes=("what readers should know",)
    )
    measurer: Any = SimpleNamespace(prober=SimpleNamespace(run=SimpleNamespace(settings=SimpleNamespace(steps=2, seed=0))))
    refit = verb.verification_by(measurer, predictor, SearchConfig(verify=4, images=16), learning=True).refit
    assert refit is not None
    if by_prior:
        assert refit([]) is predictor
    else:
        with pytest.raises(InputError, match="differ in field"):
            refit([])
