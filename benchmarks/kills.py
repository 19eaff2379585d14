"""Kill the demo at random moments and let it go on:  python benchmarks/kills.py [--chains 4] [--kills 25]      → results/kills.json

A chain is one demo: begun, killed by SIGKILL with all its workers after a random time, begun again, and so on, and at last left to end. Its files
must equal those of a demo that nobody killed, to the bit but for times, and nothing else may lie in its folder. Chains that results/kills.json holds
are not repeated; each says of which commit it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import commit, keep, kept

from sedaq.storage import file_sha256

TIMED = ("seconds",)  # fields of records that say how long something took
SHOWN = re.compile(r"report\.html|figures/.*|run\.json")  # what is drawn of the others, with times in it; run.json names the argument
STRAY = re.compile(r"(.*/)?\.[^/]+")


def demo(out: Path, seconds: float | None = None) -> bool:
    """Run the demo; kill it and its workers after so many seconds. Returns whether it ended by itself."""
    command = [sys.executable, "-m", "sedaq", "demo", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise SystemExit(f"the demo ended with {process.returncode}: {errors.strip().splitlines()[-1] if errors.strip() else ''}")
    return True


def contents(folder: Path) -> dict[str, Any]:
    """What each file of a demo holds, times left out, by its path."""
    return {
        str(path.relative_to(folder)): content_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not SHOWN.fullmatch(str(path.relative_to(folder)))
    }


def content_of(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return sorted(json.dumps(timeless(json.loads(line)), sort_keys=True) for line in path.read_text().splitlines())
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".safetensors":
        return content_of_tensors(path)
    return file_sha256(path)


def content_of_tensors(path: Path) -> Any:
    """The bytes of the tensors, and what the header says of them and beside them."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        told = {name: json.loads(text) for name, text in header.pop("__metadata__", {}).items() if name == "sedaq"}
        return header, timeless(told), hashlib.sha256(file.read()).hexdigest()


def timeless(value: Any) -> Any:
    """A JSON value without times, and without the seals over them."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in (*TIMED, "sha256")}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def chain(seed: int, n_kills: int, whole_seconds: float, expected: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One demo with so many kills, spread over all of it."""
    generator, killed_after = random.Random(seed), []
    start = time.monotonic()
    while len(killed_after) < n_kills:
        seconds = generator.uniform(1, 2 * whole_seconds / (n_kills + 1))
        if demo(folder, seconds):
            break
        killed_after.append(round(seconds, 1))
    demo(folder)
    found = contents(folder)
    strays = sorted(name for name in found if STRAY.fullmatch(name))
    return {
        "chain": seed,
        "commit": commit(),
        "kills": len(killed_after),
        "killed_after": killed_after,
        "seconds": round(time.monotonic() - start, 1),
        "files": len(expected),
        "different": sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name]),
        "missing": sorted(expected.keys() - found.keys()),
        "strays": strays,
        "others": sorted(found.keys() - expected.keys() - set(strays)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--kills", type=int, default=25, help="in each chain")
    arguments = parser.parse_args()
    conditions = {"kills": arguments.kills}
    rows = kept("kills", conditions)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        demo(Path(scratch) / "reference")
        whole_seconds, expected = time.monotonic() - start, contents(Path(scratch) / "reference")
        print(f"{len(expected)} files in {whole_seconds:.0f} s", flush=True)
        for seed in range(len(rows), arguments.chains):
            rows.append(chain(seed, arguments.kills, whole_seconds, expected, Path(scratch) / f"chain{seed}"))
            print(rows[-1], flush=True)
            keep("kills", "python benchmarks/kills.py", rows, conditions=conditions)


if __name__ == "__main__":
    main()
