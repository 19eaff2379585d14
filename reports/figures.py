"""The table of figures: what each one is called, needs, says, and how it is drawn. A report goes through it from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from ..aq.activations.choice import described
from ..sensitivity.metrics.registry import METRICS
from . import plan_figures as plans
from . import property_figures as properties
from . import search_figures as searches
from . import sensitivity_figures as layers
from . import tuning_figures as tunings
from .inputs import RunData, text_of
from .numbers import bits, count, interval, megabytes, number, sources_line


@dataclass(frozen=True)
class FigureSpec:
    """One figure of the report. `name` is also its file's name and its anchor on the page."""

    name: str
    title: str
    source: str  # file of the run folder that it is drawn from
    verb: str  # the command that writes that file
    available: Callable[[RunData], bool]
    draw: Callable[[RunData], Figure]
    caption: Callable[[RunData], str]
    table: Callable[[RunData], pd.DataFrame] | None = None  # the numbers behind it


def conditions(data: RunData) -> str:
    """How the probes were measured, in one sentence."""
    settings = data.settings
    probe = data.probes[0] if data.probes else {}
    values = {
        key: probe.get(key) if settings.get(key) is None else settings[key]
        for key in ("n_images", "steps", "seed", "extractor", "reference")
    }
    known = {key: value for key, value in values.items() if value is not None}
    parts = [f"n = {count(known['n_images'])} images"] if isinstance(known.get("n_images"), (int, float)) else []
    parts += [f"{known['steps']} steps"] if "steps" in known else []
    parts += [f"seed {known['seed']}"] if "seed" in known else []
    parts += [f"{key} {text_of(known[key])}" for key in ("extractor", "reference") if key in known]
    return (
        f"Measured with {', '.join(parts)}; every configuration starts from the same noise."
        if parts
        else "Every configuration starts from the same noise."
    )


def evaluation_conditions(data: RunData) -> str:
    """How the final figures were measured; names the rows apart where they differ."""
    ways: dict[str, list[str]] = {}
    for record in data.evaluations:
        steps = "the sampler's own number of steps" if record.get("steps") is None else f"{count(record['steps'])} steps"
        reference = f", reference {text_of(record['reference'])}" if record.get("reference") is not None else ""
        ways.setdefault(f"n = {count(record['n_images'])} images, {steps}{reference}", []).append(record["name"])
    if len(ways) == 1:
        return f"{next(iter(ways))}, the same noise for all."
    return (
        "; ".join(f"{', '.join(names)}: {way}" for way, names in ways.items())
        + ". A Fréchet distance depends on n: compare only rows of equal n."
    )


def _per_layer(data: RunData) -> str:
    return (
        f"Estimated by the predictor from {_n_probes(data)}, not measured one layer at a time; "
        f"an interval that crosses zero means that no effect was seen. {conditions(data)}"
    )


def _n_probes(data: RunData) -> str:
    return f"{count(data.fit['n_probes'])} probes" if data.fit else "the run's probes"


def _per_group(data: RunData) -> str:
    return (
        "One dot a layer, at its lowest rate, alone; the number of layers in brackets. The dark bar is the median where there are three or "
        f"more, the box the quartiles where there are five. {conditions(data)}"
    )


def _learning(data: RunData) -> str:
    return (
        "Fitted to random parts of the probes and judged on all others; bars from the least to the greatest of three parts. "
        "The noise ceiling is what a perfect predictor would reach."
    )


def _cost_map(data: RunData) -> str:
    return (
        "Layers in the model's order. Darker costs more; the palest shade also stands for no cost or less. "
        "The weight left as it is costs nothing and has no column."
    )


def _predictions(data: RunData) -> str:
    assert data.fit is not None
    n_trees = data.fit["n_trees"]
    trees = f"The additive model and {n_trees} trees" if n_trees else "The additive model alone, for held-out probes gain nothing by trees"
    return (
        f"{trees}. Cross-validated over {_n_probes(data)}: Spearman {number(data.fit['spearman'])}, "
        f"95 % interval {interval(data.fit.get('spearman_ci'))}. "
        f"The noise ceiling {number(data.fit['ceiling'])} {interval(data.fit.get('ceiling_ci'))} is what a perfect predictor would reach "
        f"against labels as noisy as these. {sources_line(data.fit['sources']) + ' ' if data.fit.get('sources') else ''}"
        f"{conditions(data)}"
    )


def _front(data: RunData) -> str:
    measured = sum(bool(plan.get("measured")) for plan in data.front or ())
    reference = plans.full_precision_fidelity(data)
    apart = (
        " Full precision was measured apart from the probes, so that its line is a guide, not a comparison of equal n."
        if reference and reference[1].startswith("eval")
        else ""
    )
    return (
        f"{len(data.front or ())} budgets, {measured} of them measured after the search: "
        f"searched and uniform plans of the same bytes on the same noise{_n_measured(data)}. "
        "Bands and bars are 95 % intervals. "
        f"Probes: {conditions(data)[0].lower()}{conditions(data)[1:]}{apart}"
    )


def _n_measured(data: RunData) -> str:
    numbers_of_images = {plan["measured"]["n_images"] for plan in data.front or () if "n_images" in (plan.get("measured") or {})}
    return f", n = {' or '.join(count(n) for n in sorted(numbers_of_images))} images" if numbers_of_images else ""


def _plan(data: RunData) -> str:
    assert data.plan is not None
    estimate = "" if data.sensitivity is not None else " Rates are code bits only, since the run has no table of layers yet."
    size = f"{bits(data.plan.bits_per_weight)} bits per weight, {megabytes(data.plan.size_bytes)} on disk"
    found = searches.how_found(data.plan.provenance)
    inputs = f" With {described(data.plan.activations, len(data.plan.formats))}." if data.plan.activations else ""
    return f"{data.plan_name}: {size}. Numbers are each layer's rate in total bits.{estimate}{inputs} {found}".strip()


def _grids(data: RunData) -> str:
    broken = sum(int((~images.isfinite()).flatten(1).any(dim=1).sum()) for images in data.grids.values())
    note = f" {count(broken)} image{'s hold' if broken != 1 else ' holds'} NaN or infinity, drawn black." if broken else ""
    return (
        "Each column starts from one noise and one condition; only the weights differ between its rows. "
        f"Images are in the order in which they were sampled, none left out.{note}"
    )


def _evaluation(data: RunData) -> str:
    return f"Lines are 95 % intervals. {evaluation_conditions(data)}"


def _evaluation_table(data: RunData) -> pd.DataFrame:
    rows = []
    for record in data.evaluations:
        row = {key: record.get(key) for key in ("name", "size_bytes", "bits_per_weight", "n_images", "steps", "seconds")}
        for name in METRICS:
            entry = record["metrics"].get(name) or {}
            row |= {name: entry.get("value"), f"{name}_se": entry.get("se")}
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1, how="all")


def _group_table(data: RunData, column: str) -> pd.DataFrame:
    rows = data.cheapest.groupby(column, sort=False)
    table = rows["cost"].describe(percentiles=[0.25, 0.5, 0.75])[["count", "min", "25%", "50%", "75%", "max"]]
    table.columns = pd.Index(["n_layers", "cost_min", "cost_quartile_1", "cost_median", "cost_quartile_3", "cost_max"])
    return table.assign(n_weights=rows["n_weights"].sum()).sort_values("cost_median", ascending=False).reset_index()


def _layer_table(data: RunData) -> pd.DataFrame:
    return layers.ranked(data).reset_index(drop=True)


_FIT, _SENSITIVITY = ("predictor/fit.json", "sedaq fit"), ("predictor/sensitivity.csv", "sedaq fit")


_PROPERTIES = ("predictor/properties.csv", "sedaq fit")


def _has_tuned_costs(data: RunData) -> bool:
    """Both fits, of the same metric."""
    tuned = data.tuned_fit
    return data.sensitivity is not None and data.tuned_sensitivity is not None and tuned is not None and tuned["metric"] == data.metric


def _has_factors(data: RunData) -> bool:
    return data.factors is not None


def _has_sensitivity(data: RunData) -> bool:
    return data.sensitivity is not None


FIGURES: tuple[FigureSpec, ...] = (
    FigureSpec(
        "evaluation",
        "Quality and size",
        "evaluations.jsonl",
        "sedaq evaluate (which keeps it in this run)",
        lambda data: bool(data.evaluations),
        plans.evaluation_bars,
        _evaluation,
        _evaluation_table,
    ),
    FigureSpec(
        "images",
        "Images from the same noise",
        "figures/grids.safetensors",
        "sedaq report",
        lambda data: bool(data.grids),
        plans.image_grids,
        _grids,
    ),
    FigureSpec(
        "front",
        "Bits against fidelity",
        "plans/front.json",
        "sedaq search",
        lambda data: bool(data.front),
        plans.front,
        _front,
        plans.front_table,
    ),
    FigureSpec(
        "plan",
        "The chosen plan",
        "plans/*.json",
        "sedaq search",
        lambda data: data.plan is not None,
        plans.plan_map,
        _plan,
        plans.rates_of,
    ),
    FigureSpec(
        "comparison",
        "The search beside other methods",
        "contest.json",
        "sedaq bench search",
        lambda data: data.comparison is not None,
        searches.method_comparison,
        searches.comparison_caption,
        searches.comparison_table,
    ),
    FigureSpec(
        "tuning",
        "Tuning",
        "tunings.jsonl",
        "sedaq apply",
        lambda data: bool(data.tunings),
        tunings.tuning,
        tunings.tuning_caption,
        tunings.tuning_table,
    ),
    FigureSpec(
        "tuned_costs",
        "What tuning cannot give back",
        "predictor_tuned/fit.json",
        "sedaq fit of tuned plans",
        _has_tuned_costs,
        tunings.tuned_costs,
        tunings.tuned_costs_caption,
        tunings.costs_of_tuning,
    ),
    FigureSpec(
        "sensitivity_layers",
        "Sensitivity by layer",
        *_SENSITIVITY,
        _has_sensitivity,
        layers.sensitivity_per_layer,
        _per_layer,
        _layer_table,
    ),
    FigureSpec(
        "sensitivity_roles",
        "Sensitivity by role",
        *_SENSITIVITY,
        _has_sensitivity,
        layers.sensitivity_per_role,
        _per_group,
        lambda data: _group_table(data, "role"),
    ),
    FigureSpec(
        "sensitivity_blocks",
        "Sensitivity by depth",
        *_SENSITIVITY,
        _has_sensitivity,
        layers.sensitivity_per_block,
        _per_group,
        lambda data: _group_table(data, "block"),
    ),
    FigureSpec(
        "sensitivity_rates",
        "Cost by layer and rate",
        *_SENSITIVITY,
        _has_sensitivity,
        layers.cost_map,
        _cost_map,
        lambda data: layers.cost_by_rate(data).reset_index(),
    ),
    FigureSpec(
        "property_factors",
        "Why layers are sensitive",
        *_PROPERTIES,
        _has_factors,
        properties.property_factors,
        properties.factors_caption,
        properties.lowest_factors,
    ),
    FigureSpec(
        "property_sizes",
        "Which properties matter",
        *_PROPERTIES,
        _has_factors,
        properties.property_sizes,
        properties.sizes_caption,
        properties.property_sizes_table,
    ),
    FigureSpec(
        "predictor",
        "Predicted against measured",
        *_FIT,
        lambda data: data.fit is not None,
        layers.predicted_against_measured,
        _predictions,
        lambda data: pd.DataFrame((data.fit or {})["predictions"]),
    ),
    FigureSpec(
        "learning",
        "How many probes it takes",
        *_FIT,
        lambda data: bool(data.fit and data.fit.get("learning_curve")),
        layers.learning_curve,
        _learning,
        lambda data: pd.DataFrame((data.fit or {})["learning_curve"]),
    ),
)
