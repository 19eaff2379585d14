"""How tuning went: the loss on held-out trajectories on the way."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from .inputs import RunData
from .numbers import as_float, count, duration, number
from .style import GROUND, MUTED, OTHER, TUNED, new_figure, styled

N_NAMED = 6  # tunings with a line of their own, the last ones


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
