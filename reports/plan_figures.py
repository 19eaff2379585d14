"""Figures of plans and of the models made from them. Each is a function of RunData that returns a Figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ..aq.formats import AS_IS, Format
from ..models.layers import block_of, role_of
from ..sensitivity.metrics.registry import METRICS
from .inputs import RunData, fidelity_of, in_8_bits
from .numbers import as_float, bits, metric, number
from .style import (
    FULL_PRECISION,
    GROUND,
    MUTED,
    SEARCHED,
    UNIFORM,
    WIDTH,
    ink_on,
    interval_line,
    log_if_wide,
    new_figure,
    rate_colour,
    shorten,
    styled,
    variant_colour,
)

OUTSIDE = "outside blocks"
POINTS_APART = 0.012  # of the axis: measured plans of equal bits, so that none hides another


def full_precision_fidelity(data: RunData) -> tuple[float, str] | None:
    """The search metric at full precision and where it was measured: among the probes if a probe left every layer as it is."""
    for probe in data.probes:
        if all(format == "asis" for format in probe["layers"].values()):
            return as_float(probe["metrics"][data.metric]["value"]), "on as many images as probes have"
    for record in data.evaluations:
        if "full" in record["name"].lower() and data.metric in record["metrics"]:
            return as_float(record["metrics"][data.metric]["value"]), f"evaluated with n = {record['n_images']:,}"
    return None


def front_table(data: RunData) -> pd.DataFrame:
    """One row per plan of the front: bits, bytes, predicted and measured fidelity of the searched and the uniform plan."""
    rows = []
    for plan in data.front or ():
        row: dict[str, Any] = {"bits_per_weight": plan["bits_per_weight"], "size_bytes": plan["size_bytes"], "solver": plan.get("solver")}
        for key, error in (("predicted", "std"), ("measured", "se"), ("uniform_predicted", "std"), ("uniform_measured", "se")):
            row[key], row[f"{key}_{error}"] = fidelity_of(plan.get(key), data.metric)
        row["uniform_bits_per_weight"] = as_float(plan.get("uniform_bits_per_weight") or plan["bits_per_weight"])
        low, high = plan.get("difference_ci") or (None, None)
        rows.append({**row, "difference_low": as_float(low), "difference_high": as_float(high)})
    return pd.DataFrame(rows)


@styled
def front(data: RunData) -> Figure:
    """Bits against fidelity: searched plans, uniform plans and full precision."""
    table = front_table(data)
    figure = new_figure(4.3)
    axes = figure.add_subplot()
    values: list[float] = []
    apart = POINTS_APART * np.ptp(table["bits_per_weight"].to_numpy()) if len(table) else 0.0
    for prefix, label, colour, marker, side in (("", "searched", SEARCHED, "o", -1), ("uniform_", "uniform", UNIFORM, "s", 1)):
        places = table[f"{prefix}bits_per_weight"].to_numpy()
        predicted, std = table[f"{prefix}predicted"].to_numpy(), table[f"{prefix}predicted_std"].fillna(0).to_numpy()
        measured, error = table[f"{prefix}measured"].to_numpy(), table[f"{prefix}measured_se"].fillna(0).to_numpy()
        known = np.isfinite(predicted)
        if known.any():
            axes.fill_between(
                places[known], (predicted - 1.96 * std)[known], (predicted + 1.96 * std)[known], color=colour, alpha=0.14, linewidth=0
            )
            axes.plot(
                places[known],
                predicted[known],
                color=colour,
                linewidth=1.8,
                linestyle="-" if not prefix else (0, (5, 2)),
                label=f"{label}, predicted",
            )
        known = np.isfinite(measured)
        if known.any():
            axes.errorbar(
                places[known] + side * apart / 2,
                measured[known],
                1.96 * error[known],
                fmt=marker,
                color=colour,
                markersize=7,
                markeredgecolor=GROUND,
                markeredgewidth=1,
                elinewidth=1.4,
                zorder=4 if prefix else 5,
                label=f"{label}, measured",
            )
        values += [*predicted, *measured]
    reference = full_precision_fidelity(data)
    if reference is not None and math.isfinite(reference[0]):
        axes.axhline(reference[0], color=FULL_PRECISION, linewidth=1.4, linestyle=(0, (1, 1.5)), label=f"full precision, {reference[1]}")
        values.append(reference[0])
    log = log_if_wide(axes, "y", values)
    searched = data.searched_metric
    axes.set(xlabel="Total bits per weight", ylabel=f"{searched.heading} ({searched.direction}{', log scale' if log else ''})")
    if not log and not searched.higher_is_better:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(loc="best")
    return figure


def rates_of(data: RunData) -> pd.DataFrame:
    """The chosen plan, one row a layer: its block, role, format, how its inputs are rounded, rate, and the bits that it takes.

    Without the sensitivity table there are no shapes to count codebooks with; bits are then those of the codes alone.
    """
    assert data.plan is not None
    known: dict[tuple[str, str], Any] = {}
    if data.sensitivity is not None:
        known = {(row.layer, row.format): row for row in data.sensitivity.itertuples()}
    undecided = {name: row for row in data.plan.provenance.get("undecided") or () for name in row["layers"]}
    rows = []
    for name, format in data.plan.formats.items():
        entry = known.get((name, str(format)))
        counted = entry.bits_per_weight if entry is not None else _code_bits(format)
        rate = entry.rate if entry is not None else counted
        weights = entry.n_weights if entry is not None else math.nan
        rows.append(
            {
                "layer": name,
                "block": block_of(name) or OUTSIDE,
                "role": role_of(name),
                "n_weights": weights,
                "format": str(format),
                "inputs": str(data.plan.activations.get(name, "")),
                "rate": rate,
                "bits_per_weight": counted,
                "would_also_do": undecided.get(name, {}).get("or"),
            }
        )
    return pd.DataFrame(rows)


def _code_bits(format: Format) -> float:
    if format == AS_IS:
        return 16.0
    return format.scalar.bits if format.scalar else format.n_codebooks * format.code_bits / format.group_size


@styled
def plan_map(data: RunData) -> Figure:
    """Blocks by roles; a cell is split where a block has several layers of one role, in module order. Colour and number are the rate."""
    rows = rates_of(data)
    blocks, roles = list(dict.fromkeys(rows["block"])), list(dict.fromkeys(rows["role"]))
    inside = [role for role in roles if (rows.loc[rows["role"] == role, "block"] != OUTSIDE).any()]
    roles = inside + [role for role in roles if role not in inside]
    blocks.sort(key=lambda block: block == OUTSIDE)
    height = min(0.36, max(8.0 / len(blocks), 0.15))  # of a row, in inches
    figure = new_figure(1.9 + height * len(blocks))
    axes = figure.add_subplot()
    for (block, role), cell in rows.groupby(["block", "role"], sort=False):
        width = 1 / len(cell)
        for place, rate in enumerate(cell["rate"]):
            colour, left, top = rate_colour(rate), roles.index(str(role)) + place * width, blocks.index(str(block))
            axes.add_patch(Rectangle((left, top), width, 1, facecolor=colour, edgecolor=GROUND, linewidth=1.5 if width > 0.2 else 0.4))
            if width * 5.3 / len(roles) > 0.22 and height > 0.2:
                axes.text(left + width / 2, top + 0.5, f"{rate:.3g}", ha="center", va="center", fontsize=8.5, color=ink_on(colour))
    axes.set(xlim=(0, len(roles)), ylim=(len(blocks), 0))
    axes.set_xticks(
        np.arange(len(roles)) + 0.5, [shorten(role, 28) for role in roles], rotation=35, ha="left", rotation_mode="anchor", fontsize=8.5
    )
    axes.xaxis.tick_top()
    axes.set_yticks(np.arange(len(blocks)) + 0.5, [shorten(block, 24) for block in blocks], fontsize=8.5)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    _rate_legend(figure, rows)
    return figure


def _rate_legend(figure: Figure, rows: pd.DataFrame) -> None:
    weights = rows["n_weights"].to_numpy()
    handles = []
    for rate, group in rows.groupby("rate"):
        share = f", {group['n_weights'].sum() / weights.sum() * 100:.1f} % of weights" if np.isfinite(weights).all() else ""
        as_is = ", as is" if set(group["format"]) == {"asis"} else ""
        handles.append(
            Patch(color=rate_colour(float(rate)), label=f"{rate:.3g} bits{as_is}: {len(group)} layer{'s' * (len(group) != 1)}{share}")
        )
    if len(handles) > 9:  # formats outside the menu: name the ends of the scale only
        handles = [handles[0], handles[len(handles) // 2], handles[-1]]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) > 1 else 1)


@styled
def image_grids(data: RunData) -> Figure:
    """Bands of images: one row a variant, one column a noise, so that a column shows what quantization changes."""
    first = next(iter(data.grids.values()))
    n_images, _, height, width = first.shape
    columns = min(n_images, 12 if width <= 64 else 6 if width <= 256 else 4)
    bands = min(max(n_images // columns, 1), max(1, 8 // len(data.grids)))
    margin, gap, band_gap = 1.3, 0.03, 0.16  # inches
    row = (WIDTH - margin) / columns * height / width + gap
    total = bands * len(data.grids) * row + (bands - 1) * band_gap + gap
    figure = Figure(figsize=(WIDTH, total), facecolor=GROUND)
    top = total - gap
    for band in range(bands):
        for name, images in data.grids.items():
            axes = figure.add_axes((margin / WIDTH, (top - row + gap) / total, 1 - (margin + gap) / WIDTH, (row - gap) / total), anchor="W")
            _strip(axes, images[band * columns : (band + 1) * columns])
            figure.text((margin - 0.1) / WIDTH, (top - row / 2) / total, shorten(name, 18), ha="right", va="center", fontsize=9)
            top -= row
        top -= band_gap
    return figure


def _strip(axes: Axes, images: torch.Tensor) -> None:
    gap = max(images.shape[-1] // 16, 1)
    padded = torch.nn.functional.pad(in_8_bits(images).float() / 255, (0, gap), value=1.0)
    strip = padded.permute(2, 0, 3, 1).flatten(1, 2)[:, :-gap].numpy()
    axes.imshow(
        strip[..., 0] if strip.shape[-1] == 1 else strip,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest" if images.shape[-1] <= 64 else "antialiased",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


@styled
def grid_image(images: torch.Tensor) -> Figure:
    """All images of one variant, as square a grid as can be."""
    n_images, _, height, width = images.shape
    columns = math.ceil(math.sqrt(n_images))
    lines = math.ceil(n_images / columns)
    figure = Figure(figsize=(5, 5 * lines * height / (columns * width)), facecolor=GROUND)
    for line in range(lines):
        axes = figure.add_axes((0, 1 - (line + 1) / lines, 1, 1 / lines))
        row = images[line * columns : (line + 1) * columns]
        _strip(axes, torch.cat([row, torch.ones(columns - len(row), *row.shape[1:])]))
    return figure


@styled
def evaluation_bars(data: RunData) -> Figure:
    """Size and every metric, one panel each; what is compared has one colour throughout."""
    names = [record["name"] for record in data.evaluations]
    metrics = [name for name in METRICS if any(_finite(record["metrics"].get(name)) for record in data.evaluations)]
    panels = ["size", *metrics]
    columns = 2
    figure = new_figure(math.ceil(len(panels) / columns) * (0.75 + 0.3 * len(names)))
    grid = np.atleast_2d(figure.subplots(math.ceil(len(panels) / columns), columns, sharey=True))
    for axes, panel in zip(grid.flat, panels, strict=False):
        _bars(axes, data.evaluations, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    grid[0, 0].set_yticks(range(len(names)), [shorten(name, 22) for name in names])
    grid[0, 0].set_ylim(len(names) - 0.45, -0.55)
    return figure


def _finite(entry: Any) -> bool:
    return isinstance(entry, dict) and math.isfinite(as_float(entry.get("value")))


def _bars(axes: Axes, records: list[dict[str, Any]], panel: str) -> None:
    for place, record in enumerate(records):
        entry = record["metrics"].get(panel) if panel != "size" else {"value": record["size_bytes"] / 1e6}
        if not _finite(entry):
            axes.text(0, place, " –", va="center", color=MUTED)
            continue
        value, error = float(entry["value"]), np.nan_to_num(as_float(entry.get("se")))
        axes.barh(place, value, height=0.62, color=variant_colour(record["name"]))
        if error:
            interval_line(axes, value - 1.96 * error, value + 1.96 * error, place)
        text = f"{number(value)} MB, {bits(record['bits_per_weight'])} bits" if panel == "size" else metric(panel, entry)
        axes.annotate(text, (max(value + 1.96 * error, 0), place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    top = axes.dataLim.x1 or 1.0
    axes.set_xlim(min(0.0, axes.dataLim.x0), top * 1.75)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    title = "Size of the denoiser" if panel == "size" else f"{METRICS[panel].heading}, {METRICS[panel].direction}"
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(False)
