"""Bits a weight against what images lose:  python benchmarks/peers_figure.py      results/peers_MODEL.json → ../docs/peers_MODEL.png; of all → ../docs/peers.png"""

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
ENDS_KEPT = "ends kept"  # end of the setting of rows whose input and output layers stay at 16 bits
FLOOR = 0.05  # a logarithmic axis has no room for less
BITS_SHOWN = 5.1  # to the right lie rows of tools that leave most of a model at 16 bits
SEDAQ = {
    "sedaq tuned": ("s", style.TUNED),
    "sedaq searched": ("o", style.SEARCHED),
    "sedaq uniform": ("D", style.UNIFORM),
}
COLOURS = ("#cc79a7", "#8a8f96", "#e69f00", "#56b4e9", "#1d2127", "#7a5195", "#a0522d", "#bcbd22", "#17708a", "#b22222")
LOOKS = SEDAQ | {method: (marker, colour) for method, marker, colour in zip(METHODS, "^vP<X>*ph8", COLOURS, strict=True)}


def series_of(row: dict[str, Any]) -> str:
    """What a row's point belongs to: sedaq's kind of plan, or its method."""
    return f"sedaq {row['setting'].partition(',')[0]}" if row["rival"] == "sedaq" else row["rival"]


def keeps_ends(row: dict[str, Any]) -> bool:
    return bool(row.get("setting", "").endswith(ENDS_KEPT))


def best_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of one method, by bits: those that no smaller row of it is nearer to full precision than."""
    found: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["bits_per_weight"], row["excess"]["value"])):
        if not found or row["excess"]["value"] < found[-1]["excess"]["value"]:
            found.append(row)
    return found


def draw_rows(axes: Axes, rows: Sequence[dict[str, Any]], title: str, *, only_best: bool) -> None:
    """All rows of up to BITS_SHOWN bits, or of other methods those that none of their smaller ones is nearer than; with 95 % intervals."""
    shown = [row for row in rows if row["name"] != FULL and row["bits_per_weight"] <= BITS_SHOWN]
    for name, (marker, colour) in LOOKS.items():
        mine = sorted((row for row in shown if series_of(row) == name), key=lambda row: row["bits_per_weight"])
        for row in best_rows(mine) if only_best and name not in SEDAQ else mine:
            excess, x = row["excess"], row["bits_per_weight"]
            low, value, high = (max(number, FLOOR) for number in (excess["ci"][0], excess["value"], excess["ci"][1]))
            axes.plot([x, x], [low, high], color=colour, linewidth=0.8, alpha=0.5)
            face = style.GROUND if keeps_ends(row) else colour
            axes.plot(x, value, marker, color=colour, markerfacecolor=face, markersize=6, zorder=3, clip_on=False)
        if name in SEDAQ:
            line = [row for row in mine if not keeps_ends(row)]
            heights = [max(row["excess"]["value"], FLOOR) for row in line]
            axes.plot([row["bits_per_weight"] for row in line], heights, color=colour, linewidth=1)
    axes.set(yscale="log", title=title, xlim=(1.4, BITS_SHOWN))
    axes.set_ylim(bottom=0.9 * FLOOR)
    style.plain_log(axes.yaxis)


@style.styled
def draw(models: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """A panel for the rows of each model, by its name."""
    n_columns = min(2, len(models))
    n_rows = -(-len(models) // n_columns)
    figure = style.new_figure(4.6 if n_columns == 1 else 1 + 2.6 * n_rows)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes, (title, rows) in zip(panels.flat, models.items(), strict=False):
        draw_rows(axes, rows, title, only_best=len(models) > 1)
    for axes in panels.flat[len(models) - n_columns : len(models)]:
        axes.set_xlabel("bits a weight, with all that is stored")
    for axes in panels[:, 0]:
        axes.set_ylabel(f"Fréchet distance above full\nprecision, {FLOOR:g} or less at the bottom")
    for axes in panels.flat[len(models) :]:
        axes.remove()
    shown = [row for rows in models.values() for row in rows]
    _explain(figure, panels[0, 0], {series_of(row) for row in shown}, any(map(keeps_ends, shown)))
    return figure


def _explain(figure: Figure, axes: Axes, series: Collection[str], with_ends: bool) -> None:
    """One legend for all panels, whose handles are empty lines of `axes`."""
    for name, (marker, colour) in LOOKS.items():
        if name in series:
            axes.plot([], [], marker, color=colour, label=name)
    if with_ends:
        axes.plot([], [], "o", color=style.INK, markerfacecolor=style.GROUND, label="open: input and output layers at 16 bits")
    if len(figure.axes) > 1:
        figure.legend(loc="outside lower center", fontsize=8, ncols=4)
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
