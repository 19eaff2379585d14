"""Tables of the predictor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .layout import Results, count, fixed, interval, lay_out, percent, table, with_interval

VARIANTS = (
    "additive model",
    "errors in place of gradient scores",
    "no piecewise-linear offsets",
    "terms add up (r = 1)",
    "a power everywhere (no saturation scale)",
    "log of the distance, not of its excess",
    "all labels weighted equally",
)


def predictors(results: Results, model: str) -> str:
    """Predictors fitted on 50 and on 200 probes, judged on plans and noise that no fit has seen."""

    def line(row: Mapping[str, Any]) -> list[str]:
        cells = [row["predictor"]]
        for fitted in (results.row("sensitivity", model=model, n_probes=n, predictor=row["predictor"]) for n in (50, 200)):
            behind = interval(fitted["behind_ci"], 3) if "behind_ci" in fitted else f"({fixed(fitted['of_ceiling'], 3)} of the ceiling)"
            cells += [fixed(fitted["spearman"], 3), behind]
        mae = fixed(row["mae"], 1 if row["mae"] < 100 else 0)
        return [*cells, fixed(row["kendall"], 3), fixed(row["ndcg10"], 3), mae]

    heads = [
        "predictor",
        "Spearman, 50 probes",
        "behind sedaq, 95 %",
        "Spearman, 200 probes",
        "behind sedaq, 95 %",
        "Kendall",
        "NDCG@10",
        "mean absolute error",
    ]
    return lay_out(heads, [line(row) for row in results.rows("sensitivity", model=model, n_probes=200)])


def single_layers(results: Results) -> str:
    """Predictions of plans with one layer quantized, from fits that have seen mixed plans only."""
    few = {row["rates"]: row for row in results.rows("sensitivity_truth", model="mnist-dit", n_probes=50)}
    return table(
        results.rows("sensitivity_truth", model="mnist-dit", n_probes=200),
        {
            "layers at": lambda row: row["rates"],
            "plans": lambda row: count(row["n_plans"]),
            "Spearman, 50 probes": lambda row: with_interval(few[row["rates"]]["spearman"], few[row["rates"]]["spearman_ci"], 3),
            "Spearman, 200 probes": lambda row: with_interval(row["spearman"], row["spearman_ci"], 3),
            "noise ceiling": lambda row: fixed(row["ceiling"], 3),
            "above two standard errors": lambda row: percent(row["above_noise"]),
            "predicted / measured, median": lambda row: fixed(row["predicted_over_measured"], 2),
        },
    )


def predictor_parts(results: Results) -> str:
    """Spearman (and median |log error|) of the additive model with one part changed, by the number of probes."""
    cases = [(model, n) for model in ("mnist-dit", "mnist-unet") for n in (12, 25, 50, 160)]

    def cell(variant: str, model: str, n: int) -> str:
        row = results.row("predictor_parts", model=model, variant=variant, n_probes=n)
        return f"{fixed(row['spearman'], 3)} ({fixed(row['median_log_error'], 2)})"

    def alone(variant: str) -> str:
        row = results.row("predictor_parts", model="mnist-dit", variant=variant, n_probes=160)
        return fixed(row["alone_over_measured"], 2)

    lines = [[variant, *(cell(variant, *case) for case in cases), alone(variant)] for variant in VARIANTS]
    return lay_out(["", *(f"{model}, {n}" for model, n in cases), "single layers"], lines)


def probe_throughput(results: Results) -> str:
    return table(
        results.rows("probe_throughput"),
        {
            "": lambda row: row["model"],
            "seconds a probe": lambda row: fixed(row["seconds"], 1),
            "of which not sampling": lambda row: percent(row["beside_sampling"], 1),
            "probes an hour": lambda row: count(row["probes_an_hour"]),
            "with two workers": lambda row: count(row["probes_an_hour_two_workers"]),
        },
    )


def frechet_errors(results: Results) -> str:
    return table(
        results.rows("frechet_errors"),
        {
            "": lambda row: row["of"],
            "mean": lambda row: fixed(row["mean"], 2),
            "standard deviation over sets": lambda row: fixed(row["spread"], 2),
            "bootstrap within conditions": lambda row: fixed(row["within conditions"], 2),
            "plain bootstrap": lambda row: fixed(row["blindly"], 2),
        },
    )


def scaled_predictor(results: Results) -> str:
    """Fit and explanation on synthetic probes of 803 layers, beside their aims."""
    row = results.row("sensitivity_scale")
    spearman = row["spearman_by_predictor"]
    lines = [
        ["fit with cross-validation", f"{fixed(row['seconds_fit_with_cross_validation'], 1)} s", "60 s"],
        ["explanation", f"{fixed(row['seconds_explanation'], 1)} s", "60 s"],
        ["peak memory of the process", f"{fixed(row['peak_bytes'] / 1e9, 2)} GB", "2 GB"],
        *([f"Spearman, out of fold: {name}", fixed(value, 4), "–"] for name, value in spearman.items()),
        ["rank correlation of layers with the true order", fixed(row["layers_ranked"], 2), "–"],
        ["the same between halves of the probes", fixed(row["stability"]["rank_correlation_of_halves"], 2), "–"],
    ]
    return lay_out(["", "measured", "aim"], lines)


TABLES = (predictors, single_layers, predictor_parts, probe_throughput, frechet_errors, scaled_predictor)
