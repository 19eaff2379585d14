"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ..sensitivity.metrics.registry import METRICS
from .numbers import ABSENT, bits, cell, count, megabytes, metric, millions, number, percent, planned


def _table(title: str | None = None) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def evaluation_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Heading by metric, of the metrics that at least one record has."""
    return {name: metric.heading for name, metric in METRICS.items() if any(record["metrics"].get(name) is not None for record in records)}


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
        content: what `sedaq inspect` as JSON prints: {n_layers, n_weights, size_bytes, bits_per_weight, layers: [...]}.
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


_OPERATIONS = {
    "dense_multiply_adds": "dense multiply-adds",
    "multiply_adds": "of these left",
    "table_multiply_adds": "multiply-adds of tables",
    "lookup_additions": "additions of lookups",
}


def operations_table(content: Mapping[str, Any], ms: Mapping[str, float] | None = None, model: str = "") -> Table:
    """What a plan or a model gives each layer, and the operations of one image in one step.

    Args:
        content: {layers: [{name, shape, planned, tokens, operations}], plan: {operations}} as `sedaq inspect` of a plan prints it as JSON; layers may
            have `inputs`, how they are rounded.
        ms: measured milliseconds of every layer, where there are some.
        model: what the title begins with.
    """
    total = content["plan"]["operations"]
    done = sum(total[name] for name in ("multiply_adds", "table_multiply_adds", "lookup_additions"))
    read = ", ".join(f"{percent(total['bytes_read'] / size)} of {name}" for name, size in total["dense_bytes"].items())
    title = (
        f"{percent(done / total['dense_multiply_adds'])} of the dense operations; weights read: {megabytes(total['bytes_read'])}, {read}"
    )
    table = _table(title)
    for heading in ("layer", "format"):
        table.add_column(heading, overflow="fold")
    for heading in ("shape", "tokens", *_OPERATIONS.values(), "bytes read", *(("ms",) if ms else ())):
        table.add_column(heading, justify="right")
    rows = [
        (layer["name"], planned(layer["planned"], layer.get("inputs")), cell("shape", layer["shape"]), _tokens(layer), layer)
        for layer in content["layers"]
    ]
    for *cells, layer in [*rows, ("total", "", "", "", {"operations": total})]:
        counted = layer.get("operations")
        if counted is None:  # of a layer that sampling does not call
            table.add_row(*cells, *("–" for _ in _OPERATIONS), "–", *(("–",) if ms else ()))
            continue
        measured = (sum(ms.values()) if cells[0] == "total" else ms[cells[0]],) if ms else ()
        numbers = [millions(counted[name]) for name in _OPERATIONS]
        table.add_row(*cells, *numbers, count(counted["bytes_read"]), *map(number, measured))
    return table


def _tokens(layer: Mapping[str, Any]) -> str:
    return count(layer["tokens"]) if "tokens" in layer else "not called"


def model_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of `sedaq bench model`: times and memory of whole models."""
    table = _table(f"{rows[0]['n_images']} images at once, {rows[0]['threads']} threads; operations of one image in one step")
    for heading in ("model", "arithmetic"):
        table.add_column(heading, overflow="fold")
    for heading in ("seconds a step", "peak memory", "operations", "of the dense ones", "weights read"):
        table.add_column(heading, justify="right")
    for row in rows:
        counted = row["operations"]
        done = sum(counted[name] for name in ("multiply_adds", "table_multiply_adds", "lookup_additions"))
        table.add_row(
            row["subject"],
            row["arithmetic"],
            number(row["seconds_per_step"]),
            megabytes(row["peak_bytes"]),
            millions(done),
            percent(done / counted["dense_multiply_adds"]),
            megabytes(counted["bytes_read"]),
        )
    return table


def rows_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, title: str | None = None) -> Table:
    """Any rows as a table; numbers are written as their column's name asks and stand on the right."""
    rows = list(rows)
    table = _table(title)
    for column in columns:
        numeric = all(isinstance(row.get(column), (int, float, dict, type(None))) for row in rows)
        heading = METRICS[column].heading if column in METRICS else column.replace("_", " ")
        table.add_column(heading, justify="right" if rows and numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(column, row[column]) if column in row else ABSENT for column in columns))
    return table


def print_table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, title: str | None = None, console: Console | None = None
) -> None:
    """Print rows on the terminal."""
    (console or Console()).print(rows_table(rows, columns, title=title))
