"""A metric, an extractor, a design and a baseline that are added from here: each is one row of a table, and the whole flow takes them."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sedaq.reports.report import write_report
from sedaq.search.baselines import BASELINES
from sedaq.search.bench import bench_search
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_front, search_run
from sedaq.sensitivity.metrics.extractors import EXTRACTORS, NetworkExtractor
from sedaq.sensitivity.metrics.registry import METRICS, mean_metric
from sedaq.sensitivity.metrics.sample import Features, Sample
from sedaq.sensitivity.predictor.fitting import fit, load_predictor
from sedaq.sensitivity.probing.designs import DESIGNS
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.run import Run
from sedaq.storage import read_json, read_records

from .conftest import SETTINGS

pytestmark = pytest.mark.usefixtures("fast_fit")


def loyalty(sample: Sample) -> torch.Tensor | None:
    """How alike each image is to full precision's: one less the mean absolute difference of pixels."""
    full = sample.full_precision
    return None if full is None else 1 - (sample.images - full.images).abs().double().flatten(1).mean(dim=1)


def test_a_metric_is_probed_fitted_searched_by_and_reported(subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "loyalty", mean_metric("loyalty", "Loyalty of pixels", loyalty, higher_is_better=True, is_headline=True))
    run = probe(subject, tmp_path / "run", n_configs=16, settings=SETTINGS)
    assert all(0 <= record["metrics"]["loyalty"]["value"] <= 1 for record in read_records(run.folder / "probes.jsonl", "probe"))
    summary = fit(run, metric="loyalty").summary
    assert summary["metric"] == "loyalty" and all(0 <= row["measured"] <= 1 for row in summary["predictions"])
    found = search_run(run, Budget(bits=3.0), SearchConfig(trials=8, verify=4))
    assert found.measured is not None and found.uniform_measured is not None
    assert found.measured["metrics"]["loyalty"]["value"] >= found.uniform_measured["metrics"]["loyalty"]["value"]
    search_front(run, SearchConfig(trials=8, verify=4), bits=[3.0])
    page = html.unescape(write_report(run.folder).read_text())
    assert "the uniform plan's Loyalty of pixels minus the searched plan's is" in page


def test_the_adaptive_design_goes_by_a_metric_that_records_no_excess(subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sedaq.sensitivity.probing import adaptive

    for name, value in (("START", 9), ("ROUND", 4), ("STRATIFIED", 1), ("MIN_PLANS", 12), ("FEW", 2), ("MIN_IMAGES", 8)):
        monkeypatch.setattr(adaptive, name, value)
    run = probe(subject, tmp_path / "run", n_configs=16, design="auto", metric="psnr", settings=SETTINGS)
    outcome = read_json(run.folder / "probing.json", "probing")
    records = read_records(run.folder / "probes.jsonl", "probe")
    assert outcome["n_plans"] >= 12 and outcome["rankings"]
    assert any(set(r["layers"].values()) == {"asis"} and r["n_images"] == 16 for r in records), "to hold plans of all images against"


def test_a_design_is_probed_by_its_name(subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cheapest_first(layers, menus, n_plans, seed):
        for k in range(max(map(len, menus.values()))):
            yield {name: menu[min(k, len(menu) - 1)].format for name, menu in menus.items()}

    monkeypatch.setitem(DESIGNS, "cheapest first", cheapest_first)
    run = probe(subject, tmp_path / "run", n_configs=3, design="cheapest first", settings=SETTINGS)
    first = read_records(run.folder / "probes.jsonl", "probe")[0]
    assert first["layers"] == {name: str(menu[0].format) for name, menu in run.menus.items()}


def test_an_extractor_is_used_by_its_name(subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows_and_columns(argument, image_shape, device):
        def forward(images: torch.Tensor) -> Features:
            return Features(torch.cat([images.mean((1, 2)), images.mean((1, 3))], dim=1)[:, : int(argument)])

        return NetworkExtractor("rows", f"rows {argument}", forward, in_channels=image_shape[0], batch_size=8, device=device)

    monkeypatch.setitem(EXTRACTORS, "rows", rows_and_columns)
    settings = replace(SETTINGS, extractor="rows:5")
    run = probe(subject, tmp_path / "run", n_configs=2, settings=settings)
    records = read_records(run.folder / "probes.jsonl", "probe")
    assert all(record["extractor"] == "rows:rows 5" and record["metrics"]["fid"]["value"] >= 0 for record in records)


# -- the metric that was fitted is followed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["psnr", "kid"])
def test_verification_and_comparison_decide_by_the_metric_that_was_fitted(run: Run, name: str) -> None:
    metric = METRICS[name]
    fit(run, metric=name)
    assert load_predictor(run).metric == name
    found = search_run(run, Budget(bits=3.0), SearchConfig(trials=8, verify=5))
    assert found.predicted["metric"] == name
    assert name != "psnr" or found.predicted["value"] > 0, "in the metric's own direction"
    verified = [r for r in read_records(run.folder / "probes.jsonl", "probe") if r["purpose"] == "verify"]
    assert len(verified) >= 3 and found.measured is not None
    if name == "psnr":
        assert found.measured["metrics"][name]["value"] == max(r["metrics"][name]["value"] for r in verified)
    rows = bench_search(run, bits=[3.0], methods=["weight-error knapsack"], n_images=16, steps=2, verify=2)
    for row in rows:
        assert row["excess"]["ci"][0] <= row["excess"]["value"] <= row["excess"]["ci"][1]
    searched, uniform = (next(row for row in rows if row["method"] == method) for method in ("searched", "uniform"))
    if name == "psnr":
        assert uniform["over_searched"]["value"] == pytest.approx(metric.sign * (uniform[name] - searched[name]))
    kept = read_json(run.folder / "contest.json", "contest")
    assert kept["conditions"]["metric"] == name and all(name in row for row in kept["rows"])
    assert f"{metric.heading} {'below' if metric.higher_is_better else 'above'} full precision" in figure_text(run)


def figure_text(run: Run) -> str:
    from sedaq.reports.inputs import read_run
    from sedaq.reports.search_figures import method_comparison

    return method_comparison(read_run(run.folder)).axes[0].get_xlabel()


def test_features_kept_before_there_were_other_metrics_are_refused_with_a_remedy(run: Run) -> None:
    from sedaq.errors import InputError
    from sedaq.sensitivity.probing.prober import Measurement, Prober

    prober = Prober(run)
    made = prober.measure({name: menu[0].format for name, menu in run.menus.items()}, purpose="verify")
    assert made.evidence is not None
    old = Measurement(made.record, {"pooled": made.evidence["pooled"]})
    assert prober.worsening(old, made, "fid")[0] == 0
    with pytest.raises(InputError, match="holds nothing to compare plans by metric 'psnr' with; remove the file"):
        prober.worsening(old, made, "psnr")


def test_a_baseline_is_held_against_the_search(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(run)
    monkeypatch.setitem(BASELINES, "all low", lambda problem, inputs: np.zeros(len(problem.units), dtype=int))  # type: ignore[index]
    rows = {row["method"]: row for row in bench_search(run, bits=[3.0], methods=["all low"], n_images=16, steps=2, verify=2)}
    assert set(rows) == {"searched", "uniform", "all low"}
    assert rows["all low"]["bits_per_weight"] < rows["searched"]["bits_per_weight"]
