"""How a plan was found, and how it fares beside what others do. Figures are functions of RunData that return a Figure."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..sensitivity.metrics.registry import DEFAULT, Metric, metric_of
from .inputs import RunData
from .numbers import count, number
from .style import GROUND, MUTED, OTHER, SEARCHED, UNIFORM, new_figure, styled

MAX_NAMED = 6  # layers in a sentence


def comparison_table(data: RunData) -> pd.DataFrame:
    """One row a budget and method: sizes, the mean of the metric over the seeds, and its excess and differences with 95 % intervals."""
    assert data.comparison is not None
    metric = _metric(data)
    rows = []
    for row in data.comparison["rows"]:
        flat: dict[str, Any] = {key: row[key] for key in ("bits", "method", "bits_per_weight", "size_bytes", metric.name)}
        for name in ("excess", "over_uniform", "over_searched"):
            flat |= {name: row[name]["value"], f"{name}_low": row[name]["ci"][0], f"{name}_high": row[name]["ci"][1]}
        rows.append(flat)
    return pd.DataFrame(rows)


def _metric(data: RunData) -> Metric:
    """Of the comparison, which an earlier fit may have made by another metric."""
    assert data.comparison is not None
    return metric_of(data.comparison["conditions"].get("metric", DEFAULT))


@styled
def method_comparison(data: RunData) -> Figure:
    """Excess over full precision of every method at every budget, the best of a budget on top."""
    table = comparison_table(data).sort_values(["bits", "excess"])
    budgets = list(dict.fromkeys(table["bits"]))
    figure = new_figure(0.9 + 0.24 * (len(table) + 1.4 * len(budgets)))
    axes = figure.add_subplot()
    place = 0.0
    places: list[float] = []
    labels: list[str] = []
    for budget in budgets:
        axes.text(0, place, f"{budget:g} bits", transform=axes.get_yaxis_transform(), weight="bold", va="center", ha="right")
        place += 1
        for row in table[table["bits"] == budget].itertuples():
            colour = {"searched": SEARCHED, "uniform": UNIFORM}.get(str(row.method), OTHER)
            axes.plot([row.excess_low, row.excess_high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot(row.excess, place, "o", color=colour, markersize=6, markeredgecolor=GROUND)
            axes.annotate(
                number(row.excess), (row.excess, place), xytext=(0, 5), textcoords="offset points", fontsize=7, color=MUTED, ha="center"
            )
            places, labels, place = [*places, place], [*labels, str(row.method)], place + 1
        place += 0.4
    axes.set_yticks(places, labels)
    axes.set_ylim(place - 0.4, -0.7)
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.5)
    axes.set_xlim(left=min(-0.5, table["excess_low"].min()))
    axes.xaxis.set_major_formatter(lambda value, _: number(value, 1))
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    metric = _metric(data)
    axes.set_xlabel(
        f"{metric.heading} {'below' if metric.higher_is_better else 'above'} full precision (lower is better; log scale above 1)"
    )
    return figure


def comparison_caption(data: RunData) -> str:
    assert data.comparison is not None
    ways = data.comparison["conditions"]
    return (
        f"Plans of equal bytes with the same encodings, {count(ways['n_images'])} images at {count(ways['steps'])} steps from each of "
        f"{count(ways['seeds'])} noise seeds that nothing was chosen on; lines are 95 % intervals of the difference to full precision on equal noise. {_beaten(data)}"
    )


def _beaten(data: RunData) -> str:
    """What the intervals bear out against the searched plan."""
    table = comparison_table(data)
    others = table[table["method"] != "searched"]
    worse, better = others["over_searched_low"] > 0, others["over_searched_high"] < 0
    said = f"Of {len(others)} plans of other methods {int(worse.sum())} are worse than the searched plan of their budget, the interval excluding zero"
    named = [f"{row.method} at {row.bits:g} bits" for row in others[better].itertuples()]
    return f"{said}; better are {', '.join(named)}." if named else f"{said}; none is better."


def how_found(provenance: dict[str, Any]) -> str:
    """Which solver found the plan, what each stage gained, and which layers' choice hangs on less than a standard error; "" if unknown."""
    if "solver" not in provenance:
        return ""
    trials = f" after {count(provenance['trials'])} trials of Optuna" if provenance.get("trials") else ""
    said = [f"Found by {provenance['solver']}{trials}{_gains(provenance.get('gains') or {})}."]
    if provenance.get("gap") is not None:
        gap = number(100 * provenance["gap"], 2)
        said.append(f"The exact solution of the additive part is at most {gap} % above the least possible.")
    undecided = provenance.get("undecided")
    if undecided is not None:
        said.append(_undecided(undecided))
    return " ".join(said)


def _gains(gains: dict[str, float]) -> str:
    """By how much each stage lowered the best score before it."""
    helped = [f"{stage} lowered the score by {number(gain)}" for stage, gain in gains.items() if gain > 0]
    idle = [stage for stage, gain in gains.items() if gain <= 0]
    said = [*helped, *([f"{' and '.join(idle)} found nothing better"] if idle else [])]
    return f": {', '.join(said)}" if said else ""


def _undecided(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "No layer's choice would change within one standard error."
    named = [f"{' and '.join(row['layers'])} ({row['or']} would do)" for row in rows[:MAX_NAMED]]
    rest = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    return f"Within one standard error the choice of {len(rows)} would change: {', '.join(named)}{rest}."
