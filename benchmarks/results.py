"""Where benchmark scripts keep their results: benchmarks/results/NAME.json, with the machine, the date and the commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch

from sedaq.errors import InputError, SedaqError
from sedaq.storage import write_atomically

RESULTS = Path(__file__).parent / "results"


@contextmanager
def telling() -> Iterator[None]:
    """An error that is told ends the script with its one line and its exit code."""
    try:
        yield
    except SedaqError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def machine() -> dict[str, Any]:
    """What timings depend on."""
    try:
        cpu = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def commit() -> str | None:
    """The commit that is measured, -dirty where files differ from it; None outside a clone."""
    found = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=RESULTS.parent, capture_output=True, text=True)
    return found.stdout.strip() or None


def keep(name: str, command: str, rows: Any, folder: Path = RESULTS, **details: Any) -> None:
    folder.mkdir(exist_ok=True)
    content = {"command": command, "date": date.today().isoformat(), "commit": commit(), "machine": machine(), **details, "rows": rows}
    write_atomically(folder / f"{name}.json", (json.dumps(content, indent=1) + "\n").encode())


def kept(name: str, conditions: dict[str, Any], folder: Path = RESULTS) -> list[Any]:
    """Rows that were kept under the same conditions; none where there is no file. Raises InputError where the conditions were others."""
    path = folder / f"{name}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["conditions"] != conditions:
        raise InputError(f"{path}: holds rows of {content['conditions']}, not of {conditions}; move it away")
    rows: list[Any] = content["rows"]
    return rows
