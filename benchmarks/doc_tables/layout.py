"""What all tables share: reading results, writing numbers, laying out columns."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Column = Callable[[Any], str]


class DocsError(ValueError):
    """A marker that cannot be rendered: what is missing, and where."""


class Results:
    """The files of benchmarks/results, read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result = cache(self._read)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        if not path.exists():
            raise DocsError(f"there is no {path.name} in {self.folder.name}/")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def rows(self, name: str, /, **fields: Any) -> list[Any]:
        """Rows of NAME.json with these values; NAME.PART for files whose rows are a dictionary of parts."""
        file, _, part = name.partition(".")
        rows = self.result(file)["rows"]
        if part:
            if part not in rows:
                raise DocsError(f"{file}.json has no part {part}, it has {', '.join(rows)}")
            rows = rows[part]
        return [row for row in rows if all(key in row and row[key] == value for key, value in fields.items())]

    def row(self, name: str, /, **fields: Any) -> Any:
        """The only row with these values."""
        found = self.rows(name, **fields)
        if len(found) != 1:
            raise DocsError(f"{len(found)} rows of {name} have {fields}, one is wanted")
        return found[0]


# -- numbers -----------------------------------------------------------------------------------------------------------------------------


def fixed(value: float, digits: int) -> str:
    """With this many digits after the point, thousands apart, a true minus: −1,299.8."""
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.replace("-", "")


def count(value: float) -> str:
    return f"{round(value):,}"


def percent(share: float, digits: int = 0) -> str:
    return f"{fixed(100 * share, digits)} %"


def interval(ends: Sequence[float], digits: int) -> str:
    return f"{fixed(ends[0], digits)} to {fixed(ends[1], digits)}"


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(values)


def with_interval(value: float, ends: Sequence[float], digits: int) -> str:
    return f"{fixed(value, digits)} ({interval(ends, digits)})"


def times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


# -- tables ------------------------------------------------------------------------------------------------------------------------------


def lay_out(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *("| " + " | ".join(cells) + " |" for cells in lines)])


def table(rows: Iterable[Any], columns: Mapping[str, Column]) -> str:
    """A Markdown table with a line for each row; a column is a head and a function of the row."""
    return lay_out(list(columns), [[column(row) for column in columns.values()] for row in rows])


def measured(results: Results, *names: str) -> str:
    """When, at which commit, on what machine and by which commands results were measured; a block of lines."""
    contents = [results.result(name) for name in names]
    machines = []
    for content in contents:
        machine = content["machine"]
        device = f"{machine['cpu']}, {machine['cores']} cores" + (f" beside an {machine['gpu']}" if "gpu" in machine else "")
        rows = content["rows"] if isinstance(content["rows"], list) else []
        threads = sorted({row["threads"] for row in rows if isinstance(row, dict) and "threads" in row}) or [machine["threads"]]
        threads = f"{' or '.join(map(str, threads))} thread{'s' if threads[-1] > 1 else ''}"
        commit = content.get("commit") or "not recorded"
        machines.append(f"{content['date']} · commit {commit} · {device}, {threads}, {machine['capability']}, torch {machine['torch']}")
    commands = list(dict.fromkeys(f"    {content['command']}" for content in contents))
    return "\n".join(["<br>\n".join(f"*{line}*" for line in dict.fromkeys(machines)), "", *commands])


TABLES = (measured,)
