"""Strangers' files:  python benchmarks/hostile.py      → results/hostile.json

Folders of runs and models, and files that users are sent, made to have code run, files written outside, or memory and hours taken. Every case is given to the verbs
that would open it, with the network closed. Counted: payloads that ran, files beside the case's folder that changed, calls of the network, and what took longer
than LIMIT seconds or was caught by nobody.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import html
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hostile_models import of_files, of_models
from hostile_runs import OWN, Case, of_links, of_runs, resealed
from results import keep
from tiny_run import SETTINGS, Scene, call, copied, less_repetition

from sedaq.kernels.timing import clock
from sedaq.reports.report import write_report
from sedaq.storage import append_record, read_json

LIMIT = 5.0
BAD = ("executed", "written_outside", "reached", "hung", "uncaught")


# -- the run -----------------------------------------------------------------------------------------------------------------------------


@contextmanager
def closed_network(calls: list[Any]) -> Iterator[None]:
    """Every attempt to reach somebody is noted, and fails."""

    def refuse(*address: Any, **_: Any) -> None:
        calls.append(address)
        raise OSError("no network")

    before = socket.socket.connect, socket.getaddrinfo
    socket.socket.connect, socket.getaddrinfo = refuse, refuse  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        socket.socket.connect, socket.getaddrinfo = before  # type: ignore[method-assign]


def snapshot(folder: Path) -> dict[str, str]:
    """Hashes of all files, but for those of the case."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not {"scene", "given"} & set(path.relative_to(folder).parts))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def try_case(scene: Scene, case: Case, folder: Path) -> dict[str, Any]:
    """One case in a folder of its own, which holds what it must not touch."""
    given, mark = folder / "given", folder / "mark"
    given.mkdir()
    (folder / "victim.txt").write_text("mine")
    copy = copied(scene, folder / "scene")
    os.environ["SEDAQ_MARK"] = str(mark)
    case.harm(copy, given)
    before, reached = snapshot(folder), []
    places = {"run": copy.run, "model": copy.model, "small": copy.written, "plan": copy.plan, "given": given}
    words = [part for word in case.words for part in (SETTINGS if word == "{settings}" else (word,))]
    with closed_network(reached):
        said = call(*(word.format(**places) if word.startswith("{") else word for word in words))
    changed = [name for name, value in snapshot(folder).items() if before.get(name) != value and name != "mark"]
    caught = said.code in (0, 1, 2) and "failed with" not in said.words
    return {
        "group": case.group,
        "case": case.name,
        "code": said.code,
        "seconds": round(said.seconds, 2),
        "executed": mark.exists(),
        "written_outside": changed,
        "reached": len(reached),
        "hung": said.seconds > LIMIT or said.code == -1,
        "uncaught": not caught,
        **({} if caught else {"said": said.words[-200:].replace(str(folder), "")}),
    }


def page_of_markup(scene: Scene, folder: Path) -> list[dict[str, Any]]:
    """Names with markup and formulas, shown on the page and in its tables."""
    copy = copied(scene, folder / "scene")
    names = {
        "markup": "<img src=x onerror=alert(1)>",
        "script": "</script><script>alert(1)</script>",
        "formula": "=cmd|'/C calc'!A0",
        "another": "@SUM(1+1)*cmd",
    }
    rows = []
    subject = read_json(copy.run / "run.json", "run")["subject"]
    resealed(copy.run / "run.json", subject={**subject, "name": names["script"]})
    lines = [json.loads(line) for line in (copy.run / "evaluations.jsonl").read_text().splitlines()]
    content = {key: value for key, value in lines[-1].items() if key not in OWN}
    for name in names.values():
        append_record(copy.run / "evaluations.jsonl", "evaluation", {**content, "name": name})
    page = write_report(copy.run).read_text()
    tables = [line for path in (copy.run / "figures").glob("*.csv") for line in path.read_text().splitlines()]
    for what, name in names.items():
        cells = [cell for line in tables for cell in next(csv.reader([line])) if name[:6] in cell]
        raw = name in page if what in ("markup", "script") else any(cell[:1] in "=+-@" for cell in cells)
        seen = name in html.unescape(page)
        rows.append(
            {
                "group": "names on the page",
                "case": what,
                "code": 0,
                "executed": raw,
                "written_outside": [],
                "reached": 0,
                "hung": False,
                "uncaught": not seen,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="cases whose group holds this text")
    only = parser.parse_args().only
    rows, start = [], clock()
    with tempfile.TemporaryDirectory() as name, less_repetition():
        scene = Scene(Path(name) / "scene").make()
        for number, case in enumerate(case for cases in (of_runs, of_links, of_models, of_files) for case in cases()):
            if only is None or only in case.group:
                folder = Path(name) / str(number)
                folder.mkdir()
                rows.append(try_case(scene, case, folder))
                shutil.rmtree(folder)
                if any(rows[-1][name] for name in BAD):
                    print(rows[-1], flush=True)
        (Path(name) / "page").mkdir()
        rows += page_of_markup(scene, Path(name) / "page")
    totals = {"cases": len(rows), **{name: sum(bool(row[name]) for row in rows) for name in BAD}}
    groups = {group: sum(row["group"] == group for row in rows) for group in dict.fromkeys(row["group"] for row in rows)}
    print(totals, groups)
    if only is None:
        keep("hostile", "python benchmarks/hostile.py", rows, totals=totals, groups=groups, seconds=round(clock() - start, 1))


if __name__ == "__main__":
    main()
