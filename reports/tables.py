"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .numbers import ABSENT, METRIC_LABELS, bits, cell, count, megabytes, metric

_EVALUATION_METRICS = {"fid": "Fréchet distance", "kid": "KID", "agreement": "agreement", "psnr": "PSNR, dB"}


def _table(title: str | None = None) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def evaluation_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Heading by metric, of the metrics that at least one record has."""
    return {
        name: heading for name, heading in _EVALUATION_METRICS.items() if any(record["metrics"].get(name) is not None for record in records)
    }


def evaluation_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Bytes, bits and fidelity of each compared model, with standard errors.

    Args:
        records: evaluations {name, size_bytes, bits_per_weight, metrics: {name: {value, se}}}, in the order to show.
    """
    columns = evaluation_columns(records)
    table = _table()
    table.add_column("")
    for heading in ("bytes", "bits per weight", *columns.values()):
        table.add_column(heading, justify="right")
    for record in records:
        table.add_row(
            record["name"],
            count(record["size_bytes"]),
            bits(record["bits_per_weight"]),
            *(metric(name, record["metrics"].get(name)) for name in columns),
        )
    return table


def inspect_table(content: Mapping[str, Any]) -> Table:
    """Layers of a subject with role, shape and menu.

    Args:
        content: what `sedaq inspect --json` prints: {n_layers, n_weights, size_bytes, bits_per_weight, layers: [...]}.
    """
    totals = f"{count(content['n_layers'])} layers, {count(content['n_weights'])} weights"
    title = f"{totals}, {megabytes(content['size_bytes'])}, {bits(content['bits_per_weight'])} bits per weight"
    table = _table(title)
    for heading, justify in (
        ("layer", "left"),
        ("role", "left"),
        ("kind", "left"),
        ("shape", "right"),
        ("weights", "right"),
        ("formats, with total bits", "left"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for layer in content["layers"]:
        menu = "  ".join(f"{entry['format']} {bits(entry['bits_per_weight'])}" for entry in layer["formats"])
        table.add_row(layer["name"], layer["role"], layer["kind"], cell("shape", layer["shape"]), count(layer["n_weights"]), menu)
    return table


def rows_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, title: str | None = None) -> Table:
    """Any rows as a table; numbers are written as their column's name asks and stand on the right."""
    rows = list(rows)
    table = _table(title)
    for column in columns:
        numeric = all(isinstance(row.get(column), (int, float, dict, type(None))) for row in rows)
        table.add_column(
            METRIC_LABELS.get(column, column.replace("_", " ")), justify="right" if rows and numeric else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(cell(column, row[column]) if column in row else ABSENT for column in columns))
    return table


def print_table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, title: str | None = None, console: Console | None = None
) -> None:
    """Print rows on the terminal."""
    (console or Console()).print(rows_table(rows, columns, title=title))
