"""Bytes against what images lose:  python benchmarks/peers_figure.py      results/peers_MODEL.json → ../docs/peers_MODEL.png; of all → ../docs/peers.png"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from doc_tables.peers import MODELS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peers_methods import METHODS
from results import RESULTS
from tuned_rows import FULL

from sedaq.reports import style

DOCS = Path(__file__).resolve().parents[1] / "docs"
ENDS_KEPT = "ends kept"  # setting of rows whose input and output layers stay at 16 bits
FLOOR = 0.05  # a logarithmic axis has no room for less
SEDAQ = {
    "sedaq tuned": ("s", style.TUNED),
    "sedaq searched": ("o", style.SEARCHED),
    "sedaq uniform": ("D", style.UNIFORM),
}
COLOURS = ("#cc79a7", "#8a8f96", "#e69f00", "#56b4e9", "#1d2127", "#7a5195", "#a0522d", "#bcbd22", "#17708a", "#b22222")
LOOKS = SEDAQ | {method: (marker, colour) for method, marker, colour in zip(METHODS, "^vP<X>*ph8", COLOURS, strict=True)}


def series_of(row: dict[str, Any]) -> str:
    """What a row's point belongs to: sedaq's kind of plan, or its method."""
    return f"sedaq {row['setting']}" if row["rival"] == "sedaq" else row["rival"]


def draw_rows(axes: Axes, rows: Sequence[dict[str, Any]], title: str) -> None:
    """All rows but full precision's, with 95 % intervals."""
    for name, (marker, colour) in LOOKS.items():
        mine = sorted((row for row in rows if series_of(row) == name), key=lambda row: row["size_bytes"])
        for row in mine:
            excess = row["excess"]
            low, value, high = (max(number, FLOOR) for number in (excess["ci"][0], excess["value"], excess["ci"][1]))
            x = row["size_bytes"] / 1e6
            axes.plot([x, x], [low, high], color=colour, linewidth=1)
            face = style.GROUND if row["setting"] == ENDS_KEPT else colour
            axes.plot(x, value, marker, color=colour, markerfacecolor=face, markersize=6, zorder=3)
        if name in SEDAQ:
            heights = [max(row["excess"]["value"], FLOOR) for row in mine]
            axes.plot([row["size_bytes"] / 1e6 for row in mine], heights, color=colour, linewidth=1)
    (full,) = (row for row in rows if row["name"] == FULL)
    axes.axvline(full["size_bytes"] / 1e6, color=style.FULL_PRECISION, linewidth=1, linestyle="--")
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_ylim(bottom=0.9 * FLOOR)
    style.plain_log(axes.xaxis)
    style.plain_log(axes.yaxis)


@style.styled
def draw(models: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """A panel for the rows of each model, by its name."""
    n_columns = min(2, len(models))
    n_rows = -(-len(models) // n_columns)
    figure = style.new_figure(4.6 if n_columns == 1 else 1 + 2.6 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, (title, rows) in zip(panels.flat, models.items(), strict=False):
        draw_rows(axes, rows, title)
    for axes in panels.flat[len(models) - n_columns : len(models)]:
        axes.set_xlabel("size of the file, MB")
    for axes in panels[:, 0]:
        axes.set_ylabel(f"Fréchet distance above full\nprecision, {FLOOR:g} or less at the bottom")
    for axes in panels.flat[len(models) :]:
        axes.remove()
    shown = [row for rows in models.values() for row in rows]
    _explain(figure, panels[0, 0], {series_of(row) for row in shown}, any(row.get("setting") == ENDS_KEPT for row in shown))
    return figure


def _explain(figure: Figure, axes: Axes, series: Collection[str], with_ends: bool) -> None:
    """One legend for all panels, whose handles are empty lines of `axes`."""
    for name, (marker, colour) in LOOKS.items():
        if name in series:
            axes.plot([], [], marker, color=colour, label=name)
    if with_ends:
        axes.plot([], [], "o", color=style.INK, markerfacecolor=style.GROUND, label="open: ends kept")
    axes.plot([], [], color=style.FULL_PRECISION, linewidth=1, linestyle="--", label="full precision")
    if len(figure.axes) > 1:
        figure.legend(loc="outside lower center", fontsize=8, ncols=5)
    else:
        figure.legend(loc="outside right upper", fontsize=8)


def draw_figure(folder: Path, *models: str) -> Path:
    """The figure of models' rows: peers_MODEL.png, peers.png of several; in docs/ for those of benchmarks/results, else beside the rows."""
    contents = {model: json.loads((folder / f"peers_{model}.json").read_text()) for model in models}
    path = (DOCS if folder == RESULTS else folder) / ("peers.png" if len(models) > 1 else f"peers_{models[0]}.png")
    style.save_png(draw({model: content["rows"] for model, content in contents.items()}), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    measured = [model for model in MODELS if (folder / f"peers_{model}.json").exists()]
    for models in ([model] for model in measured):
        print(draw_figure(folder, *models))
    if len(measured) > 1:
        print(draw_figure(folder, *measured))


if __name__ == "__main__":
    main()
