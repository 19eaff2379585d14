"""Figures of what a prior has learnt over all models of its corpus: which properties matter, in which direction, and how harm depends on each."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..sensitivity.prior.contributions import dependence, summary
from ..sensitivity.prior.model import LearntPrior
from ..sensitivity.prior.properties import PROPERTIES
from ..storage import write_atomically
from .numbers import interval, number
from .style import INK, MUTED, OTHER, SEARCHED, UNIFORM, as_factors, interval_line, new_figure, save_png, shorten, styled, svg_bytes

N_PANELS, N_COLUMNS = 9, 3
N_NAMES = 6  # of a property that has names: the most harmful and the least harmful ones
LEAST_RANGE = float(np.log(1.25))  # of a panel, either way, so that what hardly matters looks so
CLEAR_DIRECTION = 0.3  # of a rank correlation


def write_figures(prior: LearntPrior, table: pd.DataFrame, path: Path) -> None:
    """Of a corpus, beside `path`: NAME.summary and NAME.dependence, each as SVG and PNG."""
    told = summary(prior, table)
    drawn = {"summary": property_summary(told), "dependence": property_dependence(told, dependence(prior, table))}
    for name, figure in drawn.items():
        save_png(figure, path.with_suffix(f".{name}.png"))
        write_atomically(path.with_suffix(f".{name}.svg"), svg_bytes(figure))


@styled
def property_summary(told: pd.DataFrame) -> Figure:
    """Ranked bars: by what factor a property typically tells layers apart, and whether more of it means more harm. Lines are 90 % intervals over members.

    Args:
        told: sensitivity.prior.contributions.summary.
    """
    rows = told.iloc[::-1].to_dict("records")
    figure = new_figure(1.4 + 0.23 * len(rows))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        axes.barh(place, row["size"], height=0.68, color=direction(row["direction"])[1])
        interval_line(axes, row["low"], row["high"], place)
        factor, low, high = (float(np.exp(row[name])) for name in ("size", "low", "high"))
        said = f"{PROPERTIES[row['property']].label}: ×{number(factor)} {interval((low, high))}"
        figure.tell(axes, (0, row["high"]), (place - 0.4, place + 0.4), said)
        if row["names"]:
            axes.text(row["high"], place, f"  {row['names'].partition(';')[0]}", va="center", color=MUTED, fontsize=8)
    axes.set_yticks(range(len(rows)), [PROPERTIES[row["property"]].label for row in rows], fontsize=8.5)
    as_factors(axes.xaxis)
    axes.set(ylim=(-0.6, len(rows) - 0.4), xlabel="Typical factor between two layers, over all models of the corpus")
    axes.grid(axis="y", visible=False)
    kinds = dict(direction(row["direction"]) for row in reversed(rows))
    axes.legend(handles=[Patch(color=colour, label=label) for label, colour in kinds.items()], loc="lower right")
    return figure


def direction(correlation: float) -> tuple[str, str]:
    """What more of a property means, and its colour; NaN for names."""
    if not np.isfinite(correlation):
        return "has names", MUTED
    if abs(correlation) < CLEAR_DIRECTION:
        return "neither clearly", OTHER
    return ("more of it, more harm", UNIFORM) if correlation > 0 else ("more of it, less harm", SEARCHED)


@styled
def property_dependence(told: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """A panel for each of the properties that matter most: the factor on a layer's harm against its value. Bands are 90 % intervals over members.

    Args:
        told: sensitivity.prior.contributions.summary. curves: its dependence.
    """
    names = list(told["property"][:N_PANELS])
    n_rows = -(-len(names) // N_COLUMNS)
    figure = new_figure(0.3 + 2.1 * n_rows)
    for place, name in enumerate(names):
        axes = figure.add_subplot(n_rows, N_COLUMNS, place + 1)
        own, one = curves[curves["property"] == name], PROPERTIES[name]
        (_names if one.names else _curve)(axes, own)
        for row in own.itertuples() if not one.names else ():
            figure.tell_point(axes, float(row.value), float(np.log(row.factor)), f"{one.label} {number(row.value)}: ×{number(row.factor)}")
        axes.set_title(textwrap.fill(one.label, 24), fontsize=8.5)
        if one.unit:
            axes.set_xlabel(one.unit, fontsize=8)
        axes.tick_params(labelsize=7.5)
    return figure


def _curve(axes: Axes, rows: pd.DataFrame) -> None:
    x = rows["value"].to_numpy(float)
    middle, low, high = (np.log(rows[name].to_numpy(float)) for name in ("factor", "low", "high"))
    axes.fill_between(x, low, high, color=SEARCHED, alpha=0.2, linewidth=0)
    axes.plot(x, middle, color=SEARCHED, linewidth=1.6, marker="o", markersize=3)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    lowest, highest = axes.get_ylim()
    axes.set_ylim(min(lowest, -LEAST_RANGE), max(highest, LEAST_RANGE))
    as_factors(axes.yaxis)
    axes.locator_params(axis="x", nbins=4)


def _names(axes: Axes, rows: pd.DataFrame) -> None:
    ranked = rows.sort_values("factor", kind="stable", ignore_index=True)
    half = N_NAMES // 2
    shown = ranked if len(ranked) <= N_NAMES else pd.concat([ranked[:half], ranked[-half:]], ignore_index=True)
    places = np.arange(len(shown))
    axes.plot(np.log(shown["factor"]), places, "o", color=SEARCHED, markersize=4)
    for place, row in zip(places, shown.itertuples(), strict=True):
        interval_line(axes, float(np.log(row.low)), float(np.log(row.high)), int(place))
    axes.set_yticks(places, [shorten(str(value), 16) for value in shown["value"]], color=INK)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    lowest, highest = axes.get_xlim()
    axes.set_xlim(min(lowest, -LEAST_RANGE), max(highest, LEAST_RANGE))
    as_factors(axes.xaxis)
