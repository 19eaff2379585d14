"""Tables of tuning and of the larger model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from .layout import Column, Results, count, fixed, lay_out, percent, table, with_interval

SHIPPED = ("mnist-dit", "mnist-unet")
N_DRAWN = 1000  # sets of plans, for intervals over plans


def above(row: Mapping[str, Any]) -> str:
    return "–" if row["name"] == "full precision" else with_interval(row["excess"]["value"], row["excess"]["ci"], 2)


def unless_full(column: Column) -> Column:
    """Nothing to compare full precision with."""
    return lambda row: "–" if row["name"] == "full precision" else column(row)


QUALITY: dict[str, Column] = {
    "above full precision, 95 %": above,
    "agreement": lambda row: percent(row["agreement"], 1) if "agreement" in row else "–",
    "PSNR, dB": unless_full(lambda row: fixed(row["psnr"], 1)),
    "paired distance": unless_full(lambda row: fixed(row["feature_distance"], 4)),
}


def minutes(row: Mapping[str, Any]) -> str:
    """Of tuning; older rows know how long they took to be made, with what was recorded and in the last sitting."""
    return fixed(row.get("tuning_seconds", row["seconds_made"]) / 60, 1)


def _rows(results: Results, name: str) -> list[Any]:
    """Of a model: those of uniform plans, then those of searched ones, which have a file of their own for the shipped models."""
    rows = list(results.rows(f"tuning_{name}"))
    if name in SHIPPED:
        rows += [row for row in results.rows(f"tuning_searched_{name}") if row["name"] != "full precision"]
    return rows


def tuned_models(results: Results, name: str) -> str:
    """Tuned and untuned models beside full precision, means over noise seeds."""
    rows = _rows(results, name)
    quality = {"Fréchet distance": lambda row: fixed(row["fid"], 2), **QUALITY, "KID": lambda row: fixed(row["kid"], 2)}
    if not any("agreement" in row for row in rows):
        del quality["agreement"]
    return table(
        rows,
        {
            "": lambda row: row["name"],
            "bytes": lambda row: count(row["size_bytes"]),
            "bits": lambda row: fixed(row["bits_per_weight"], 2),
            **quality,
            "tuning, minutes": lambda row: minutes(row) if row.get("tune_steps") else "–",
        },
    )


def held_out_losses(results: Results, name: str) -> str:
    """The loss on held-out trajectories before and after tuning."""
    return table(
        [row for row in _rows(results, name) if row.get("losses")],
        {
            "": lambda row: row["name"],
            "untuned": lambda row: fixed(row["losses"][0][1], 5),
            "tuned": lambda row: fixed(min(loss for _, loss in row["losses"]), 5),
            "above full precision, tuned": lambda row: fixed(row["excess"]["value"], 2),
        },
    )


def recovered_excess(results: Results) -> str:
    """The share of an untuned plan's excess that tuning takes back."""
    models = {name: {row["name"]: row["excess"]["value"] for row in _rows(results, name)} for name in SHIPPED}
    plans = [name.removesuffix(" tuned") for name in models["mnist-dit"] if name.endswith(" tuned")]

    def share(excess: Mapping[str, float], plan: str) -> str:
        return percent(1 - excess[f"{plan} tuned"] / excess[plan], 1) if plan in excess else "–"

    return lay_out(["", *models], [[plan, *(share(excess, plan) for excess in models.values())] for plan in plans])


def student_trajectories(results: Results) -> str:
    """Searched plans tuned on the teacher's trajectories alone, and on the student's as well."""
    found = []
    for model in SHIPPED:
        rows = {row["name"]: row for row in results.rows(f"tuning_searched_{model}")}
        found += [(model, row, rows[name.partition(",")[0]]) for name, row in rows.items() if "teacher's trajectories alone" in name]

    def line(model: str, alone: Mapping[str, Any], both: Mapping[str, Any]) -> list[str]:
        worse, (low, high) = alone["difference"]["value"], alone["difference"]["ci"]
        changed = with_interval(-worse, (-high, -low), 2)
        parts = [[fixed(row["psnr"], 1), minutes(row)] for row in (alone, both)]
        return [
            model,
            both["name"].removesuffix(" tuned"),
            above(alone),
            above(both),
            changed,
            *(" → ".join(pair) for pair in zip(*parts, strict=True)),
        ]

    heads = ["", "", "the teacher's alone", "the student's, too", "difference, 95 %", "PSNR, dB", "tuning, minutes"]
    return lay_out(heads, [line(*of) for of in found])


def tuning_parts(results: Results) -> str:
    """One part of tuning changed; three tuning seeds parted by semicolons."""
    seeds: dict[str, list[Any]] = {}
    for row in results.rows("tuning_ablation"):
        if row["name"] not in ("full precision", "untuned"):
            seeds.setdefault(row["name"].rpartition(", ")[0], []).append(row)

    def line(name: str, rows: list[Any]) -> list[str]:
        def joined(column: Column) -> str:
            return "; ".join(map(column, rows))

        losses = joined(lambda row: fixed(1e4 * min(loss for _, loss in row["losses"]), 1))
        mean = fixed(statistics.mean(row["excess"]["value"] for row in rows), 2)
        rest = [joined(QUALITY[head]) for head in ("agreement", "PSNR, dB", "paired distance")]
        return [name, losses, joined(above), mean, *rest]

    untuned = results.row("tuning_ablation", name="untuned")
    losses = "; ".join(fixed(1e4 * row["losses"][0][1], 1) for row in seeds["PV"])
    first = [
        "untuned",
        losses,
        above(untuned),
        fixed(untuned["excess"]["value"], 2),
        *(QUALITY[head](untuned) for head in ("agreement", "PSNR, dB", "paired distance")),
    ]
    heads = ["", "held-out loss, 10⁻⁴", "above full precision (95 %)", "mean", "agreement", "PSNR, dB", "paired distance"]
    return lay_out(heads, [first, *(line(name, rows) for name, rows in seeds.items())])


def mean_excess(results: Results, variant: str) -> float:
    """The mean excess of a variant of the ablation over its tuning seeds."""
    found = [row["excess"]["value"] for row in results.rows("tuning_ablation") if row["name"].rpartition(", ")[0] == variant]
    return statistics.mean(found)


def tuning_summary(results: Results) -> str:
    """Excess of untuned and tuned plans with inputs in 8 bits, both models."""
    models = {name: {row["name"]: row for row in _rows(results, name)} for name in SHIPPED}
    plans = [f"W{bits}A8 {kind}" for bits in ("4", "3", "2", "1.5") for kind in ("uniform", "searched")]

    def cell(rows: Mapping[str, Any], plan: str) -> str:
        found = [fixed(rows[name]["excess"]["value"], 2) if name in rows else "–" for name in (plan, f"{plan} tuned")]
        return " → ".join(found) if set(found) != {"–"} else "–"

    full = [f"{name} (full precision {fixed(rows['full precision']['fid'], 2)})" for name, rows in models.items()]
    return lay_out(["", *full], [[plan, *(cell(rows, plan) for rows in models.values())] for plan in plans])


def tuning_choices(results: Results, case: str) -> str:
    """One setting of tuning changed at a time."""
    return table(
        [row for row in results.rows(f"tuning_choices_{case}") if row["name"] != "full precision"],
        {
            "": lambda row: row["name"],
            **QUALITY,
            "tuning, s": lambda row: fixed(row["seconds_made"], 0) if row.get("tune_steps") else "–",
        },
    )


def rounded_inputs(results: Results, name: str) -> str:
    """How many layers have their inputs rounded in which way."""
    rows = [row for row in results.rows(f"tuning_{name}") if row["name"] in ("W2A8 uniform", "W2A6 uniform")]
    return table(rows, {"": lambda row: row["name"], "layers": lambda row: row["inputs"].removeprefix("inputs rounded: ")})


def _predictors(rows: Mapping[str, Any], number: int, steps: int) -> dict[str, float]:
    """What is known of a plan before it is tuned for all steps, by name."""
    untuned = rows[f"plan {number}"]
    losses = untuned["held_out_losses"]
    return {
        "excess untuned": untuned["excess"]["value"],
        "held-out loss untuned": losses["before"],
        "held-out loss after 20 steps of layers": losses["layers"],
        "held-out loss after 20 steps of blocks": losses["blocks"],
        "held-out loss after 20 steps of the whole": losses["whole"],
        f"held-out loss after {steps // 10} steps": min(loss for _, loss in rows[f"plan {number} tuned {steps // 10}"]["losses"]),
        f"excess after {steps // 10} steps": rows[f"plan {number} tuned {steps // 10}"]["excess"]["value"],
        f"held-out loss after {steps} steps": min(loss for _, loss in rows[f"plan {number} tuned {steps}"]["losses"]),
    }


def tuned_ranks(results: Results, model: str) -> str:
    """How each of these orders plans, against their excess after all steps: Spearman with a 95 % interval over plans (bootstrap)."""
    rows = {row["name"]: row for row in results.rows(f"tuned_ranks_{model}")}
    steps = results.result(f"tuned_ranks_{model}")["conditions"]["tune_steps"]
    numbers = [number for number in range(len(rows)) if f"plan {number} tuned {steps}" in rows]
    known = [_predictors(rows, number, steps) for number in numbers]
    excess = np.array([rows[f"plan {number} tuned {steps}"]["excess"]["value"] for number in numbers])
    drawn = np.random.default_rng(0).integers(len(numbers), size=(N_DRAWN, len(numbers)))
    found = []
    for name in known[0]:
        values = np.array([of_plan[name] for of_plan in known])
        over_plans = [spearmanr(values[plans], excess[plans]).statistic for plans in drawn if len(set(plans)) > 2]
        found.append({"name": name, "value": spearmanr(values, excess).statistic, "ci": np.nanquantile(over_plans, [0.025, 0.975])})
    return table(
        found,
        {"": lambda row: row["name"], f"Spearman, {len(numbers)} plans (95 %)": lambda row: with_interval(row["value"], row["ci"], 2)},
    )


def tuned_searches(results: Results, model: str) -> str:
    """Plans that were searched for the tuned model beside those that were searched for the untuned one, all tuned alike."""
    found = [row for row in results.rows(f"tuned_search_{model}") if row["name"] != "full precision"]
    rows = sorted(found, key=lambda row: -row["bits"])
    return table(
        rows,
        {
            "bits": lambda row: fixed(row["bits"], 1),
            "searched": lambda row: row["name"].partition(" bits ")[2],
            "above full precision, 95 %": above,
            "beside the first, 95 %": lambda row: (
                with_interval(row["difference"]["value"], row["difference"]["ci"], 2) if "difference" in row else "–"
            ),
            "PSNR, dB": lambda row: fixed(row["psnr"], 1),
            "paired distance": lambda row: fixed(row["feature_distance"], 4),
            "held-out loss, 10⁻⁴": lambda row: fixed(1e4 * min(loss for _, loss in row["losses"]), 1),
            "search, minutes": lambda row: fixed(row["search_seconds"] / 60, 1) if row["search_seconds"] >= 1 else "found before",
        },
    )


TABLES = (
    student_trajectories,
    tuned_searches,
    tuned_ranks,
    tuned_models,
    held_out_losses,
    recovered_excess,
    tuning_parts,
    mean_excess,
    tuning_summary,
    tuning_choices,
    rounded_inputs,
)
