"""The page of a run: one self-contained HTML file, and its figures as PNG, SVG and CSV."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import torch

from ..errors import InputError
from ..outputs import check_out, csv_bytes
from ..runtime.status import commands_in
from ..sensitivity.metrics.registry import METRICS
from ..storage import write_atomically
from . import numbers
from .figures import FIGURES, FigureSpec, conditions, evaluation_conditions
from .inputs import RunData, checked_grids, complaints, read_run, save_grids, text_of
from .plan_figures import grid_image, rates_of
from .style import DPI, save_png, spot_boxes, svg_bytes
from .tables import evaluation_columns
from .watch import command_rows

MARK = ": sedaq report</title>"  # in every page
MAX_ROWS_SHOWN = 40  # of the numbers behind a figure; longer tables are in the CSV only


def write_report(
    run_folder: Path, out: Path | None = None, *, grids: dict[str, torch.Tensor] | None = None, plan: Path | None = None
) -> Path:
    """Draw all that a run folder has to show.

    Writes figures/*.png, *.svg and *.csv in the run folder and one page with the figures embedded. A section whose input is not there yet
    is left out, with a line that says which command makes it.

    Args:
        run_folder: holds at least run.json.
        out: the page; run_folder/report.html where None.
        plan: that the page is about; plans/plan.json in the run, or the one of fewest bits, where None.
        grids: images by variant, (n, C, H, W) in [0, 1], made from the same noise; those of the last report where None.

    Returns:
        The page's path.

    Raises:
        InputError: a file of the run is damaged, or a place cannot be written.
    """
    run_folder = Path(run_folder)
    page = run_folder / "report.html" if out is None else Path(out)
    if out is not None:
        check_out("out", page, MARK)
    data = read_run(run_folder, grids, plan)
    folder = run_folder / "figures"
    sections = [_section(spec, data, folder) for spec in FIGURES]
    if data.grids:
        _write_grids(folder, data.grids, fresh=grids is not None)
    write_atomically(page, _render(run_folder, data, sections).encode())
    return page


def _section(spec: FigureSpec, data: RunData, folder: Path) -> dict[str, Any]:
    section: dict[str, Any] = {
        "name": spec.name,
        "title": spec.title,
        "source": spec.source,
        "verb": spec.verb,
        "image": None,
        "csv": None,
        "spots": [],
    }
    if not spec.available(data):
        for suffix in (".png", ".svg", ".csv"):
            _remove(folder / f"{spec.name}{suffix}")
        return section
    with complaints(folder.parent / spec.source, f"write it again with `{spec.verb}`"):
        figure, caption = spec.draw(data), spec.caption(data)
        width, height = figure.get_size_inches()
        table = spec.table(data) if spec.table else None
        section |= {
            "image": save_png(figure, folder / f"{spec.name}.png"),
            "spots": spot_boxes(figure),
            "width": round(width * DPI),
            "height": round(height * DPI),
            "caption": caption,
        }
    write_atomically(folder / f"{spec.name}.svg", svg_bytes(figure))
    if table is not None:
        write_atomically(folder / f"{spec.name}.csv", csv_bytes(table))
        section |= {
            "csv": f"figures/{spec.name}.csv",
            "n_rows": len(table),
            "rows": _html_rows(table) if len(table) <= MAX_ROWS_SHOWN else None,
        }
    return section


def _remove(path: Path) -> None:
    """Remove what an earlier state of the run left."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: is out of date and cannot be removed ({error.strerror}); remove it, or make the folder writable"
        ) from error


def _html_rows(table: pd.DataFrame) -> dict[str, Any]:
    kept = table.dropna(axis=1, how="all")
    columns = [str(column) for column in kept.columns]
    headings = [
        f"{column} bits" if isinstance(column, float) else name.replace("_", " ")
        for column, name in zip(kept.columns, columns, strict=True)
    ]
    body = [[_text(column, value) for column, value in zip(columns, row, strict=True)] for row in kept.itertuples(index=False, name=None)]
    return {"headings": headings, "body": body, "numeric": [pd.api.types.is_numeric_dtype(kept[column]) for column in kept.columns]}


def _text(column: str, value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or numbers.ABSENT
    value = value.item() if hasattr(value, "item") else value
    return numbers.cell(column, value)


def _write_grids(folder: Path, grids: Mapping[str, torch.Tensor], *, fresh: bool) -> None:
    for name, images in checked_grids(grids).items():
        save_png(grid_image(images), folder / f"images-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'unnamed'}.png")
    if fresh:
        save_grids(folder / "grids.safetensors", grids)


def _render(run_folder: Path, data: RunData, sections: list[dict[str, Any]]) -> str:
    template = files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    with complaints(run_folder, "write the named file again"):
        context = {
            "subject": data.run["subject"]["name"],
            "conditions": conditions(data),
            "settings": {key.replace("_", " "): text_of(value) for key, value in data.settings.items()},
            "n_probes": data.n_probes,
            "sections": sections,
            "tiles": _tiles(data),
            "verdict": _verdict(data),
            "evaluation": _evaluation(data),
            "layers": _layers(data),
            "commands": _commands(run_folder),
            "findings": (data.fit or {}).get("findings", []),
            "trust": _trust(data),
            "scores": _scores(data),
            "table_script": base64.b64encode(_asset("dt_bundle.js")).decode(),
            "table_style": _asset("dt_bundle.css").decode(),
        }
    return environment.from_string(template).render(context)


def _commands(run_folder: Path) -> dict[str, Any] | None:
    """Other commands that are at work in the run."""
    rows = command_rows(tuple(command for command in commands_in(run_folder) if command.is_alive and command.pid != os.getpid()))
    shown = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    return {"headings": shown, "body": [[row[name] for name in shown] for row in rows], "numeric": [False] * len(shown)} if rows else None


def _asset(name: str) -> bytes:
    """A file of DataTables as itables bundles it, whole in one file."""
    return files("itables").joinpath("html", name).read_bytes()


def _trust(data: RunData) -> list[str]:
    """How far the explanation can be trusted, one sentence each."""
    fit, said = data.fit or {}, []
    if stability := fit.get("stability"):
        value, least, greatest = (numbers.number(stability[key]) for key in ("rank_correlation_of_halves", "least", "greatest"))
        said.append(
            f"Fitted to random halves of the probes, layers are ranked alike with rank correlation {value} ({least} to {greatest})."
        )
    if additivity := fit.get("additivity"):
        middle, low, high = (numbers.number(value) for value in additivity["measured_over_sum_alone"])
        own, other = (numbers.percent(math.expm1(additivity[key])) for key in ("error_of_predictor", "error_of_additivity"))
        said.append(
            f"Summing what each layer costs alone is off by {other} in the middle (measured over summed: {middle}, quartiles {low} to {high}); "
            f"this predictor by {own}."
        )
    return [*said, *(f"Note: {note}." for note in fit.get("notes", []))]


def _scores(data: RunData) -> dict[str, Any] | None:
    """Every predictor's scores on held-out probes."""
    scores = (data.fit or {}).get("scores")
    if not scores:
        return None
    rows = [
        ["this predictor" if name == "sedaq" else name]
        + [numbers.number(score[key]) for key in ("spearman", "kendall", "ndcg10", "mae")]
        + [numbers.interval(score.get("behind_ci"))]
        for name, score in scores.items()
    ]
    return {"headings": ["predictor", "Spearman", "Kendall", "NDCG@10", "mean abs. error", "Spearman behind ours, 95 %"], "rows": rows}


def _evaluation(data: RunData) -> dict[str, Any] | None:
    if not data.evaluations:
        return None
    columns = evaluation_columns(data.evaluations)
    rows = [
        [record["name"], numbers.count(record["size_bytes"]), numbers.bits(record["bits_per_weight"])]
        + [numbers.metric(name, record["metrics"].get(name)) for name in columns]
        for record in data.evaluations
    ]
    return {"headings": ["", "bytes", "bits per weight", *columns.values()], "rows": rows, "conditions": evaluation_conditions(data)}


def _find(data: RunData, part: str) -> dict[str, Any] | None:
    return next((record for record in reversed(data.evaluations) if part in record["name"].lower()), None)


def _tiles(data: RunData) -> list[dict[str, str]]:
    """The few numbers that a reader came for: the searched model beside full precision and uniform."""
    best, full, uniform = _find(data, "search"), _find(data, "full"), _find(data, "uniform")
    if best is None:
        return []
    others = [(name, record) for name, record in (("full precision", full), ("uniform", uniform)) if record is not None]
    share = (
        f"{numbers.percent(best['size_bytes'] / full['size_bytes'])} of full precision's {numbers.megabytes(full['size_bytes'])}"
        if full
        else "of the denoiser"
    )
    tiles = [
        {"label": "Size", "value": numbers.megabytes(best["size_bytes"]), "note": share},
        {
            "label": "Bits per weight",
            "value": numbers.bits(best["bits_per_weight"]),
            "note": f"{best['name']}, codebooks and scales included",
        },
    ]
    for name, metric in METRICS.items():
        if (metric.is_headline or name == data.metric) and best["metrics"].get(name) is not None:
            note = " · ".join(f"{other} {numbers.metric(name, record['metrics'].get(name))}" for other, record in others)
            tiles.append({"label": metric.heading, "value": numbers.metric(name, best["metrics"][name]), "note": note})
    return tiles


def _verdict(data: RunData) -> str:
    """Does the searched plan beat uniform? From the paired interval of the measured plan nearest to the chosen one."""
    measured = [plan for plan in data.front or () if plan.get("difference_ci")]
    if not measured:
        return ""
    wanted = data.plan.bits_per_weight if data.plan else measured[0]["bits_per_weight"]
    plan = min(measured, key=lambda plan: abs(plan["bits_per_weight"] - wanted))
    low, high = (numbers.as_float(bound) for bound in plan["difference_ci"])
    metric = data.searched_metric
    first, second = ("uniform", "searched") if metric.higher_is_better else ("searched", "uniform")
    where = (
        f"At {numbers.bits(plan['bits_per_weight'])} bits, before tuning, the {first} plan's {metric.label} minus the {second} plan's is"
    )
    if low == high == 0:
        return f"{where} 0: the search found no better plan, and the uniform one is handed out."
    said = "the searched plan is better" if high < 0 else "the uniform plan is better" if low > 0 else "no difference is shown"
    return f"{where} within {numbers.interval((low, high))} (95 %, same noise, same bytes): {said}."


def _layers(data: RunData) -> list[list[str]] | None:
    """One row a layer: what it is, what it costs at its lowest rate, what the plan gives it."""
    if data.sensitivity is None:
        return None
    chosen = {row["layer"]: row for row in rates_of(data).to_dict("records")} if data.plan else {}
    rows = []
    for layer in data.cheapest.itertuples():
        given = chosen.get(layer.layer, {})
        rows.append(
            [
                str(layer.layer),
                str(layer.role),
                numbers.count(layer.n_weights),
                numbers.bits(layer.rate),
                numbers.number(layer.cost),
                numbers.interval((layer.cost_low, layer.cost_high)),
                numbers.number(layer.contribution),
            ]
            + [numbers.planned(given.get("format"), given.get("inputs")), numbers.bits(given.get("bits_per_weight"))]
        )
    return rows
