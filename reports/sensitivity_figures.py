"""Figures of what each layer can stand, and of how well that is known. Each is a function of RunData that returns a Figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..sensitivity.metrics.registry import metric_of
from .inputs import RunData
from .numbers import as_float, interval, number
from .style import (
    FULL_PRECISION,
    GROUND,
    INK,
    MUTED,
    OTHER,
    PALE,
    SEARCHED,
    SEQUENTIAL,
    PageFigure,
    family,
    interval_line,
    log_if_wide,
    new_figure,
    plain_log,
    shorten,
    spread,
    styled,
    widen_if_skewed,
)

MAX_BARS = 30
MAX_LABELLED_ROWS = 60
LOG_RATIO = 6  # of measurements, above which predictions are shown on logarithmic axes


def ranked(data: RunData) -> pd.DataFrame:
    """Every layer at its lowest rate, the costliest first; layers without a cost last."""
    return data.cheapest.sort_values("cost", ascending=False, kind="stable", na_position="last")


def _lowest_rate(rows: pd.DataFrame) -> str:
    low, high = rows["rate"].min(), rows["rate"].max()
    return f"{low:g} bits" if low == high else f"{low:g} to {high:g} bits"


@styled
def sensitivity_per_layer(data: RunData) -> Figure:
    """Ranked bars: what each layer costs at its lowest rate, with 95 % intervals, coloured by family of roles."""
    rows = ranked(data)
    shown, rest = rows.head(MAX_BARS).iloc[::-1], rows.iloc[MAX_BARS:]
    figure = new_figure(1.25 + 0.21 * len(shown))
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    families = [family(role) for role in shown["role"]]
    axes.barh(places, shown["cost"], height=0.68, color=[colour for _, colour in families])
    for place, (cost, low, high) in enumerate(shown[["cost", "cost_low", "cost_high"]].to_numpy()):
        if math.isnan(cost):
            axes.text(0, place, " not measured", va="center", color=MUTED, fontsize=8.5)
        elif np.isfinite((low, high)).all():
            interval_line(axes, low, high, place)
            name, rate = shown[["layer", "rate"]].iloc[place]
            figure.tell(
                axes, (0, max(cost, high)), (place - 0.4, place + 0.4), f"{name}, {rate:g} bits: {number(cost)} {interval((low, high))}"
            )
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(places, [shorten(name) for name in shown["layer"]], fontsize=8.5)
    scale = widen_if_skewed(axes, shown["cost"])
    axes.set(
        ylim=(-0.6, len(shown) - 0.4), xlabel=f"{data.searched_metric.worsening_heading} at the lowest rate ({_lowest_rate(rows)}){scale}"
    )
    axes.grid(axis="y", visible=False)
    handles = [
        Patch(color=colour, label=name)
        for name, colour in sorted(set(families), key=lambda item: -sum(item == other for other in families))
    ]
    axes.legend(handles=handles, loc="lower right", title="Line: 95 % interval", title_fontsize=9, alignment="left")
    if len(rest):
        title = f"The {len(shown)} most sensitive of {len(rows)} layers; the rest cost {number(rest['cost'].max(), 2)} or less each"
        figure.suptitle(title, x=0.008, ha="left", fontsize=10, fontweight="bold")
    return figure


@styled
def sensitivity_per_role(data: RunData) -> Figure:
    """Box and dots of every role's layers at their lowest rate, the costliest role on top."""
    rows = data.cheapest.dropna(subset=["cost"])
    order = rows.groupby("role")["cost"].median().sort_values().index
    return _boxes(data, rows, "role", list(order))


@styled
def sensitivity_per_block(data: RunData) -> Figure:
    """Box and dots of every block's layers at their lowest rate, in the model's order from the top."""
    rows = data.cheapest.dropna(subset=["cost"])
    return _boxes(data, rows, "block", list(dict.fromkeys(rows["block"]))[::-1])


def _boxes(data: RunData, rows: pd.DataFrame, column: str, order: list[str]) -> Figure:
    """One row a group: a dot a layer, coloured by family of roles, a box of quartiles from five layers, a bar at the median from three."""
    figure = new_figure(1.0 + 0.34 * max(len(order), 2))
    axes = figure.add_subplot()
    random = np.random.default_rng(0)
    for place, group in enumerate(order):
        members = rows[rows[column] == group]
        costs = members["cost"].to_numpy()
        colours = [family(str(role))[1] for role in members["role"]]
        if len(costs) >= 5:
            low, high = np.quantile(costs, (0.25, 0.75))
            axes.fill_betweenx(
                [place - 0.32, place + 0.32], low, high, color=colours[0] if column == "role" else PALE, alpha=0.25, linewidth=0
            )
        offsets = random.uniform(-0.16, 0.16, len(costs)) if len(costs) > 1 else np.zeros(1)
        axes.scatter(costs, place + offsets, s=34, color=colours, edgecolor=GROUND, linewidth=0.8, zorder=3, clip_on=False)
        if len(costs) >= 3:
            median = float(np.median(costs))
            axes.plot([median, median], [place - 0.34, place + 0.34], color=INK, linewidth=1.6, zorder=4)
        for layer, cost, offset in zip(members["layer"], costs, offsets, strict=True):
            figure.tell_point(axes, cost, place + offset, f"{layer}: {number(cost)}")
    counts = rows[column].value_counts()
    axes.set_yticks(range(len(order)), [f"{shorten(group, 40) or 'outside of blocks'} ({counts[group]})" for group in order])
    scale = "\nlog scale" if log_if_wide(axes, "x", rows["cost"]) else widen_if_skewed(axes, rows["cost"])
    if axes.get_xscale() != "log":
        axes.axvline(0, color=MUTED, linewidth=0.8)
    label = f"{data.searched_metric.worsening_heading} at the lowest rate ({_lowest_rate(data.cheapest)}){scale}"
    axes.set(ylim=(-0.6, len(order) - 0.4), xlabel=label)
    if column == "block":
        families = list(dict.fromkeys(family(str(role)) for role in rows["role"]))
        handles = [Patch(color=colour, label=name) for name, colour in families]
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def cost_by_rate(data: RunData) -> pd.DataFrame:
    """Cost by layer (rows, in module order) and rate (columns); NaN where a layer's menu lacks the rate."""
    assert data.sensitivity is not None
    rows = data.sensitivity[data.sensitivity["format"] != "asis"]
    table = rows.pivot_table(index="layer", columns="rate", values="cost", aggfunc="first", dropna=False, sort=True)
    return table.reindex(rows["layer"].drop_duplicates())


@styled
def cost_map(data: RunData) -> Figure:
    """Layer by rate, colour the cost on a logarithmic scale."""
    table = cost_by_rate(data)
    costs = table.to_numpy(dtype=float)
    positive = costs[np.isfinite(costs) & (costs > 0)]
    top = positive.max() if positive.size else 1.0
    floor = float(np.quantile(positive, 0.1)) if positive.size else 0.1  # one layer may cost a million times another
    labelled = len(table) <= MAX_LABELLED_ROWS
    figure = new_figure(1.2 + min(0.2 * len(table), 8.0))
    axes = figure.add_subplot()
    colours = SEQUENTIAL.with_extremes(under=SEQUENTIAL(0.0), bad="#ffffff")
    norm = LogNorm(floor, top if top > floor else floor * 10)
    mesh = axes.pcolormesh(
        np.where(np.isfinite(costs), np.maximum(costs, floor), np.nan),
        cmap=colours,
        norm=norm,
        edgecolor=GROUND,
        linewidth=1.2 if labelled else 0,
    )
    for row, column in np.argwhere(~np.isfinite(costs)) if labelled else ():
        axes.text(column + 0.5, row + 0.5, "not on its menu", ha="center", va="center", color=MUTED, fontsize=7.5)
    for row, column in np.argwhere(np.isfinite(costs)) if labelled else ():
        told = f"{table.index[row]}, {table.columns[column]:g} bits: {number(costs[row, column])}"
        figure.tell(axes, (column, column + 1), (row, row + 1), told)
    axes.invert_yaxis()
    axes.set_xticks(np.arange(len(table.columns)) + 0.5, [f"{rate:g}" for rate in table.columns])
    axes.set_xlabel("Rate, total bits per weight")
    if labelled:
        axes.set_yticks(np.arange(len(table)) + 0.5, [shorten(name) for name in table.index], fontsize=8.5)
    else:
        _label_blocks(axes, data, table)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, aspect=40, pad=0.02, fraction=0.06, label=f"{data.searched_metric.worsening_heading} (log scale)")
    plain_log(bar.ax.yaxis)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _label_blocks(axes: Axes, data: RunData, table: pd.DataFrame) -> None:
    blocks = data.cheapest.set_index("layer")["block"].reindex(table.index).to_numpy()
    starts = [0, *(place for place in range(1, len(blocks)) if blocks[place] != blocks[place - 1])]
    kept = [start for place, start in enumerate(starts) if place == 0 or start - starts[place - 1] > len(blocks) / 80]
    axes.set_yticks([start + 0.5 for start in kept], [shorten(blocks[start] or table.index[start]) for start in kept], fontsize=8)


@styled
def predicted_against_measured(data: RunData) -> Figure:
    """Out-of-fold predictions beside the measurements, and the rank correlation beside its ceiling and the baselines."""
    assert data.fit is not None
    figure = new_figure(3.9)
    left, right = figure.subplots(1, 2, width_ratios=(1.12, 1))
    _predictions(figure, left, data.fit)
    _correlations(right, data.fit)
    return figure


def _predictions(figure: PageFigure, axes: Axes, fit: dict[str, Any]) -> None:
    rows = np.array([[as_float(row[key]) for key in ("measured", "predicted", "bits_per_weight")] for row in fit["predictions"]]).reshape(
        -1, 3
    )
    rows = rows[np.isfinite(rows[:, :2]).all(axis=1)]
    axes.set_title("Plans not fitted on")
    axes.set(xlabel=f"Measured {metric_of(fit['metric']).heading}", ylabel="Predicted")
    if not len(rows):
        axes.text(0.5, 0.5, "no prediction stored", transform=axes.transAxes, ha="center", color=MUTED)
        return
    for measured, predicted, bits in rows:
        figure.tell_point(axes, measured, predicted, f"measured {number(measured)}, predicted {number(predicted)}, {bits:.2f} bits")
    points = axes.scatter(rows[:, 0], rows[:, 1], c=rows[:, 2], cmap=SEQUENTIAL, s=26, edgecolor=FULL_PRECISION, linewidth=0.5, zorder=3)
    both = rows[:, :2].ravel()
    if spread(both) > LOG_RATIO:
        axes.set(xscale="log", yscale="log")
        low, high = both.min() / 1.2, both.max() * 1.2
    else:
        margin = 0.06 * (np.ptp(both) or 1.0)
        low, high = both.min() - margin, both.max() + margin
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if spread(both) > LOG_RATIO:
        plain_log(axes.xaxis)
        plain_log(axes.yaxis)
    bar = axes.figure.colorbar(
        points, ax=axes, orientation="horizontal", aspect=30, shrink=0.75, pad=0.02, label="Bits per weight of the plan"
    )
    bar.outline.set_visible(False)  # type: ignore[operator]


def correlations(fit: dict[str, Any]) -> list[tuple[str, float, Any]]:
    """Rank correlation by predictor, the fitted one first, then the baselines from best to worst."""
    baselines = sorted(
        ((name, as_float(value)) for name, value in fit["baselines"].items()), key=lambda item: -np.nan_to_num(item[1], nan=-2)
    )
    return [("this predictor", as_float(fit["spearman"]), fit.get("spearman_ci")), *((name, value, None) for name, value in baselines)]


def _correlations(axes: Axes, fit: dict[str, Any]) -> None:
    rows = correlations(fit)
    for place, (_, value, bounds) in enumerate(rows):
        colour = SEARCHED if place == 0 else OTHER
        axes.barh(place, value, height=0.6, color=colour)
        end = value
        if bounds is not None:
            interval_line(axes, as_float(bounds[0]), as_float(bounds[1]), place)
            end = np.nanmax([value, as_float(bounds[1])])
        inside = np.nan_to_num(end) > 0.3
        axes.text(
            0.02 if inside else np.nan_to_num(max(end, 0)) + 0.02,
            place,
            number(value),
            va="center",
            color="white" if inside else INK,
            fontsize=9,
            fontweight="bold",
        )
    ceiling, bounds = as_float(fit["ceiling"]), fit.get("ceiling_ci")
    bottom = -0.95
    if bounds is not None:
        axes.axvspan(as_float(bounds[0]), as_float(bounds[1]), color=FULL_PRECISION, alpha=0.12, linewidth=0, zorder=0)
    if math.isfinite(ceiling):
        axes.axvline(ceiling, color=FULL_PRECISION, linewidth=1.4, linestyle=(0, (4, 2)))
        axes.text(ceiling - 0.02, bottom + 0.08, f"noise ceiling {number(ceiling)}", ha="right", va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(rows)), [shorten(name, 26) for name, _, _ in rows])
    lowest = min([0.0, *(value for _, value, _ in rows if math.isfinite(value))])
    axes.set(xlim=(lowest * 1.1, 1.0), ylim=(len(rows) - 0.4, bottom - 0.25), xlabel="Spearman rank correlation, out of fold")
    axes.set_title("How well the order is told")
    axes.axvline(0, color=PALE, linewidth=0.8)
    axes.grid(axis="y", visible=False)


@styled
def learning_curve(data: RunData) -> Figure:
    """Rank correlation on probes that were left out, by how many were learnt from; bars span the repeats."""
    assert data.fit is not None
    points = data.fit["learning_curve"]
    sizes, values = np.array([p["n_probes"] for p in points]), np.array([p["spearman"] for p in points])
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    lows, highs = np.array([p["low"] for p in points]), np.array([p["high"] for p in points])
    axes.errorbar(sizes, values, yerr=[values - lows, highs - values], color=SEARCHED, marker="o", markersize=5, capsize=3, linewidth=1.6)
    for size, value, low, high in zip(sizes, values, lows, highs, strict=True):
        figure.tell_point(axes, float(size), float(value), f"{size} probes: {number(value)}, {number(low)} to {number(high)}")
    ceiling = as_float(data.fit["ceiling"])
    axes.axhline(ceiling, color=FULL_PRECISION, linewidth=1.4, linestyle=(0, (4, 2)))
    axes.annotate(
        f"noise ceiling {number(ceiling)}", (0.99, ceiling), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9
    )
    lowest = min(lows.min(), ceiling)
    axes.set(xscale="log", ylim=(lowest - 0.15 * (1.01 - lowest), 1.0 + 0.12 * (1.01 - lowest)))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="Probes learnt from", ylabel="Spearman, probes left out")
    return figure
