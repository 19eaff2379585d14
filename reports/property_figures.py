"""Figures of what properties make layers sensitive, by what other models taught. Each is a function of RunData that returns a Figure."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..sensitivity.prior.properties import PROPERTIES
from .inputs import RunData
from .numbers import interval, number
from .style import INK, MUTED, SEARCHED, UNIFORM, as_factors, interval_line, new_figure, shorten, styled

N_LAYERS, N_PARTS = 5, 4  # layers in the figure of factors, and properties of each that are shown one by one
GAP = 0.5  # between layers, of a bar


def label_of(name: str, value: str) -> str:
    """A property as people read it, with the name that a layer has of it."""
    one = PROPERTIES[name]
    return f"{one.label}: {value}" if one.names else one.label


def lowest_factors(data: RunData) -> pd.DataFrame:
    """The factors of every layer at its lowest rate."""
    assert data.factors is not None
    least = data.factors.groupby("layer", sort=False)["rate"].transform("min")
    return data.factors[data.factors["rate"] == least].reset_index(drop=True)


class Bar(NamedTuple):
    """Of a waterfall, in logarithms: where it begins and ends, and the 90 % interval of its end, which is not known of several properties together."""

    label: str
    start: float
    end: float
    low: float = math.nan
    high: float = math.nan


def waterfall(rows: pd.DataFrame) -> list[Bar]:
    """Of one layer: the strongest properties first and all others together last."""
    logs, lows, highs = (np.log(rows[name].to_numpy(float)) for name in ("factor", "low", "high"))
    order = np.argsort(-np.abs(logs), kind="stable")
    bars, at = [], 0.0
    for place in order[:N_PARTS]:
        name, value = rows[["property", "value"]].iloc[place]
        bars.append(Bar(label_of(str(name), str(value)), at, at + logs[place], at + lows[place], at + highs[place]))
        at += float(logs[place])
    rest = float(logs[order[N_PARTS:]].sum())
    return [*bars, Bar(f"{len(order) - N_PARTS} other properties", at, at + rest)]


@styled
def property_factors(data: RunData) -> Figure:
    """A waterfall for each of the layers that are thought to be most harmful: factors against the mean layer of the model at the same rate."""
    rows = lowest_factors(data)
    harms = rows.groupby("layer", sort=False)["harm"].first().sort_values(ascending=False, kind="stable")[:N_LAYERS]
    n_rows = len(harms) * (N_PARTS + 2)
    figure = new_figure(1.6 + 0.24 * (n_rows + GAP * len(harms)))
    axes = figure.add_subplot()
    labels: list[tuple[float, str, bool]] = []
    place = 0.0
    for layer, harm in harms.items():
        axes.barh(place, np.log(harm), height=0.7, color=INK)
        figure.tell(axes, _ordered(0.0, float(np.log(harm))), (place - 0.4, place + 0.4), f"{layer}: ×{number(harm)}")
        _tell_end(axes, float(np.log(harm)), place, f"×{number(harm, 2)}")
        labels.append((place, shorten(str(layer), 44), True))
        for bar in waterfall(rows[rows["layer"] == layer]):
            place -= 1
            label, factor = bar.label, f"×{number(float(np.exp(bar.end - bar.start)), 2)}"
            axes.barh(place, bar.end - bar.start, left=bar.start, height=0.6, color=UNIFORM if bar.end > bar.start else SEARCHED)
            if np.isfinite((bar.low, bar.high)).all():
                interval_line(axes, bar.low, bar.high, place)
            figure.tell(axes, _ordered(bar.start, bar.end), (place - 0.4, place + 0.4), f"{layer}, {label}: {factor}")
            _tell_end(axes, np.nanmax([bar.start, bar.end, bar.high]), place, factor)
            labels.append((place, shorten(f"   {label}", 44), False))
        place -= 1 + GAP
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks([place for place, _, _ in labels], [label for _, label, _ in labels], fontsize=8.5)
    for text, (_, _, is_layer) in zip(axes.get_yticklabels(), labels, strict=True):
        text.set_fontweight("bold" if is_layer else "normal")
    as_factors(axes.xaxis)
    axes.margins(x=0.08)
    axes.set(ylim=(place + GAP + 0.3, 0.7), xlabel="Times the typical layer of this model at the same rate")
    axes.grid(axis="y", visible=False)
    meanings = ((INK, "the layer"), (UNIFORM, "makes it more harmful"), (SEARCHED, "makes it less harmful"))
    figure.legend(handles=[Patch(color=colour, label=label) for colour, label in meanings], loc="outside upper right", ncols=3)
    return figure


def _tell_end(axes: Axes, end: float, place: float, text: str) -> None:
    axes.text(max(end, 0.0), place, f" {text}", va="center", color=MUTED, fontsize=8)


def property_sizes_table(data: RunData) -> pd.DataFrame:
    """How much each property tells this model's layers apart, the most first: mean size of its factor's logarithm at the lowest rate."""
    rows = lowest_factors(data)
    logs = np.log(rows[["factor", "low", "high"]])
    sizes = logs["factor"].abs().groupby(rows["property"]).mean()
    width = ((logs["high"] - logs["low"]) / 2).groupby(rows["property"]).mean()
    table = pd.DataFrame({"factor": np.exp(sizes), "low": np.exp(np.maximum(sizes - width, 0)), "high": np.exp(sizes + width)})
    return table.sort_values("factor", ascending=False, kind="stable").rename_axis("property").reset_index()


@styled
def property_sizes(data: RunData) -> Figure:
    """Ranked bars: by what factor each property typically tells two layers apart, with 90 % intervals over the prior's members."""
    table = property_sizes_table(data).iloc[::-1]
    figure = new_figure(1.0 + 0.23 * len(table))
    axes = figure.add_subplot()
    places = np.arange(len(table))
    axes.barh(places, np.log(table["factor"]), height=0.68, color=SEARCHED)
    for place, row in zip(places, table.itertuples(), strict=True):
        low, high = float(np.log(row.low)), float(np.log(row.high))
        interval_line(axes, low, high, int(place))
        said = f"{PROPERTIES[str(row.property)].label}: ×{number(row.factor)} {interval((row.low, row.high))}"
        figure.tell(axes, (0, max(high, float(np.log(row.factor)))), (place - 0.4, place + 0.4), said)
    axes.set_yticks(places, [PROPERTIES[name].label for name in table["property"]], fontsize=8.5)
    as_factors(axes.xaxis)
    axes.set(ylim=(-0.6, len(table) - 0.4), xlabel="Typical factor, at the lowest rate")
    axes.grid(axis="y", visible=False)
    return figure


def _ordered(a: float, b: float) -> tuple[float, float]:
    return (a, b) if a <= b else (b, a)


def factors_caption(data: RunData) -> str:
    return (
        f"The {N_LAYERS} layers that are thought to be most harmful at their lowest rate before any probe, and why: each bar goes on where the one above it ends. "
        "Contributions are exact (SHAP), lines are 90 % intervals over the prior's members."
    )


def sizes_caption(data: RunData) -> str:
    return "Over this model's layers, by what other models taught; probes of this run have no part in it. Lines are 90 % intervals over the prior's members."
