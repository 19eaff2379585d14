"""Bytes against what images lose:  python benchmarks/peers_figure.py MODEL      results/peers_MODEL.json → ../docs/peers_MODEL.png"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from peers_rivals import RIVALS
from results import RESULTS
from tuned_rows import FULL

from sedaq.reports import style

DOCS = Path(__file__).resolve().parents[1] / "docs"
FLOOR = 0.05  # a logarithmic axis has no room for less
SEDAQ = {
    "sedaq tuned": ("s", style.TUNED),
    "sedaq searched": ("o", style.SEARCHED),
    "sedaq uniform": ("D", style.UNIFORM),
}
COLOURS = ("#cc79a7", "#8a8f96", "#e69f00", "#56b4e9", "#1d2127", "#7a5195", "#a0522d", "#bcbd22", "#17708a", "#b22222")
LOOKS = SEDAQ | {rival: (marker, colour) for rival, marker, colour in zip(RIVALS, "^vP<X>*ph8", COLOURS, strict=True)}


def series_of(row: dict[str, Any]) -> str:
    """What a row's point belongs to: sedaq's kind of plan, or its rival."""
    return f"sedaq {row['setting']}" if row["rival"] == "sedaq" else row["rival"]


@style.styled
def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """All rows but full precision's, with 95 % intervals."""
    figure = style.new_figure(4.6)
    axes = figure.subplots()
    for name, (marker, colour) in LOOKS.items():
        mine = sorted((row for row in rows if series_of(row) == name), key=lambda row: row["size_bytes"])
        if not mine:
            continue
        for row in mine:
            excess = row["excess"]
            low, value, high = (max(number, FLOOR) for number in (excess["ci"][0], excess["value"], excess["ci"][1]))
            x = row["size_bytes"] / 1e6
            axes.plot([x, x], [low, high], color=colour, linewidth=1)
            face = style.GROUND if row["setting"] == "ends kept" else colour
            axes.plot(x, value, marker, color=colour, markerfacecolor=face, markersize=6, zorder=3)
        if name in SEDAQ:
            axes.plot(
                [row["size_bytes"] / 1e6 for row in mine], [max(row["excess"]["value"], FLOOR) for row in mine], color=colour, linewidth=1
            )
        axes.plot([], [], marker, color=colour, label=name)
    if any(row.get("setting") == "ends kept" for row in rows):
        axes.plot([], [], "o", color=style.INK, markerfacecolor=style.GROUND, label="open: ends kept")
    (full,) = (row for row in rows if row["name"] == FULL)
    axes.axvline(full["size_bytes"] / 1e6, color=style.FULL_PRECISION, linewidth=1, linestyle="--", label="full precision")
    axes.set(xscale="log", yscale="log", xlabel="size of the file, MB", title=title)
    axes.set_ylabel(f"Fréchet distance above full precision,\n{FLOOR:g} or less at the bottom")
    axes.set_ylim(bottom=0.9 * FLOOR)
    style.plain_log(axes.xaxis)
    style.plain_log(axes.yaxis)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def draw_figure(model: str, folder: Path = RESULTS) -> Path:
    """The figure of a model's rows: in docs/ for those of benchmarks/results, else beside the rows."""
    content = json.loads((folder / f"peers_{model}.json").read_text())
    conditions = content["conditions"]
    seeds = len(conditions["seeds"])
    title = f"{model}: {conditions['n_images']:,} images from each of {seeds} noise seed{'s' if seeds > 1 else ''}"
    path = (DOCS if folder == RESULTS else folder) / f"peers_{model}.png"
    style.save_png(draw(content["rows"], title), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    print(draw_figure(arguments.model, arguments.results))


if __name__ == "__main__":
    main()
