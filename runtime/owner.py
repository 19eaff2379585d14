"""Whose a stored file is.

An artifact carries the name of its file, which holds the key of all that it depends on (tasks.py). A file of a fixed name, such as
predictor/fit.json, carries the fingerprint of its run. Moved elsewhere, neither is taken for what it is not. Files of earlier versions carry nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..outputs import refuse_links
from ..storage import fingerprint, read_json, read_records_from, warn_of_rest

RUN_FILE = "run.json"


def artifact(path: Path) -> dict[str, str]:
    """What an artifact at `path` carries."""
    return {"artifact": path.name}


def owner(folder: Path) -> dict[str, str]:
    """What files of fixed names carry in the folder of a run; nothing where there is no run."""
    if not (folder / RUN_FILE).exists():
        return {}
    content = read_json(folder / RUN_FILE, "run")
    return {"run": fingerprint([content["subject"]["fingerprint"], content["settings"]])}


def run_record(folder: Path) -> dict[str, Any]:
    """What run.json says. Raises InputError where the folder holds a link out of it, through which a stranger's run would have other files written."""
    refuse_links(folder)
    return read_json(folder / RUN_FILE, "run")


def read_own_records(path: Path, kind: str) -> list[dict[str, Any]]:
    """All records of a journal in a run's folder, without what says whose they are. Raises DamagedError for a damaged line, and for one of another run."""
    records, end = read_own_records_from(path, kind, 0)
    warn_of_rest(path, end)
    return records


def read_own_records_from(path: Path, kind: str, start: int) -> tuple[list[dict[str, Any]], int]:
    """Those after the first `start` bytes; see storage.read_records_from."""
    own = owner(path.parent)
    records, end = read_records_from(path, kind, start, owner=own)
    return [{name: value for name, value in record.items() if name not in own} for record in records], end
