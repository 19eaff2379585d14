"""How tuning went: the loss on held-out trajectories on the way; and what it gives back of each layer's cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from .inputs import RunData, lowest_rates
from .numbers import as_float, count, duration, number
from .style import GROUND, MUTED, OTHER, PALE, TUNED, interval_line, new_figure, plain_log, shorten, styled

N_NAMED = 6  # tunings with a line of their own, the last ones
MAX_LINES = 30  # of layers


def tuning_table(data: RunData) -> pd.DataFrame:
    """One row a tuning and look: name, step, held_out_loss."""
    rows = [
        {"name": record["name"], "step": int(step), "held_out_loss": as_float(loss)}
        for record in data.tunings
        for step, loss in record["held_out_losses"]
    ]
    return pd.DataFrame(rows)


@styled
def tuning(data: RunData) -> Figure:
    """Held-out loss by step, on a log scale; a dot marks what was handed out."""
    table = tuning_table(data)
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    shown = [record["name"] for record in data.tunings][-N_NAMED:]
    for name in shown:
        rows = table[table["name"] == name].dropna()
        last = name == shown[-1]
        axes.plot(rows["step"], rows["held_out_loss"], color=TUNED if last else OTHER, linewidth=1.8 if last else 1.1)
        best = rows.loc[rows["held_out_loss"].idxmin()]
        axes.plot(best["step"], best["held_out_loss"], "o", color=TUNED if last else OTHER, markersize=6, markeredgecolor=GROUND)
        axes.annotate(
            name, (best["step"], best["held_out_loss"]), xytext=(-6, 7), textcoords="offset points", fontsize=8, color=MUTED, ha="right"
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: number(value, 2))
    axes.yaxis.set_minor_formatter(lambda value, _: number(value, 2))
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out loss (lower is better)")
    return figure


def tuning_caption(data: RunData) -> str:
    """Of the last tuning in words."""
    record = data.tunings[-1]
    losses = {int(step): as_float(loss) for step, loss in record["held_out_losses"]}
    best = min(losses, key=lambda step: losses[step] if losses[step] == losses[step] else float("inf"))
    said = (
        f"Mean squared error of the denoiser's output against full precision's, on trajectories that were not tuned on. {record['name']}: "
        f"from {number(losses[0])} to {number(losses[best])} after {count(best)} of {count(max(losses))} steps, {duration(record['seconds'])}."
    )
    return f"{said} Its end: {record['ending']}." if record["ending"] else said


def costs_of_tuning(data: RunData) -> pd.DataFrame:
    """One row a layer, the costliest after tuning first: what its lowest rate costs before a short tuning and after it."""
    assert data.sensitivity is not None and data.tuned_sensitivity is not None
    columns = ["layer", "role", "rate", "cost", "cost_low", "cost_high"]
    before, after = lowest_rates(data.sensitivity)[columns], lowest_rates(data.tuned_sensitivity)[["layer", *columns[3:]]]
    both = before.merge(after, on="layer", suffixes=("", "_tuned"))
    return both.sort_values("cost_tuned", ascending=False, kind="stable", na_position="last", ignore_index=True)


@styled
def tuned_costs(data: RunData) -> Figure:
    """A line a layer, from what it costs before tuning to what is left, with the 95 % interval of that; the costliest on top."""
    table = costs_of_tuning(data)
    shown = table[(table["cost"] > 0) & (table["cost_tuned"] > 0)].head(MAX_LINES).iloc[::-1].reset_index(drop=True)
    figure = new_figure(1.25 + 0.21 * max(len(shown), 2))
    axes = figure.add_subplot()
    for row in shown.itertuples():
        place, before, after = row.Index, row.cost, row.cost_tuned
        axes.plot([before, after], [place, place], color=PALE, linewidth=2.4, zorder=1)
        interval_line(axes, max(row.cost_low_tuned, after / 10), row.cost_high_tuned, place)
        figure.tell_point(axes, after, place, f"{row.layer}, {row.rate:g} bits: {number(before)}, tuned {number(after)}")
    axes.plot(shown["cost"], shown.index, "o", color=OTHER, markersize=6, markeredgecolor=GROUND, label="not tuned")
    axes.plot(shown["cost_tuned"], shown.index, "o", color=TUNED, markersize=6, markeredgecolor=GROUND, label="tuned")
    axes.set(xscale="log", ylim=(-0.6, len(shown) - 0.4))
    plain_log(axes.xaxis)
    axes.set_yticks(shown.index, [shorten(str(name)) for name in shown["layer"]], fontsize=8.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{data.searched_metric.worsening_heading} at the lowest rate")
    axes.legend(loc="lower right", title="Line: 95 % interval", title_fontsize=9, alignment="left")
    return figure


def tuned_costs_caption(data: RunData) -> str:
    """How much a short tuning gives back, and of which layer least."""
    assert data.tuned_fit is not None
    table = costs_of_tuning(data).query("cost > 0")
    left = table["cost_tuned"] / table["cost"]
    said = (
        f"{count(data.tuned_fit['tuned_steps'])} steps of tuning leave a median layer {left.median():.0%} of its cost" if len(table) else ""
    )
    costly = table[table["cost"] >= table["cost"].median()]
    most = costly.loc[(costly["cost_tuned"] / costly["cost"]).idxmax()] if len(costly) else None
    which = f"; of the costlier half {most['layer']} keeps most, {most['cost_tuned'] / most['cost']:.0%}" if most is not None else ""
    return (
        f"{said}{which}. What tuning cannot give back should decide the bits of a model that is tuned. "
        f"Both are predictors' estimates, by {count(data.tuned_fit['n_probes'])} tuned probes; layers that cost nothing are left out."
    )
