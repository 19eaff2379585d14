"""Calls of the system that fail, and clocks that jump:  python benchmarks/failing_calls.py [--points 100] [--jumps 20]      → results/failing_calls.json

Runs `probe → fit → search → apply → evaluate` of a tiny model while one random call that writes, closes, renames or flushes a file fails with EIO. The verb must
say so in one line with exit code 1 or 2, or not need the call; what was finished must be there; and the same verbs must go on to the same files. Then the
same while the clock jumps by up to a year, either way, at a random call: nothing may fail or differ. Calls are taken from libc by a library that is loaded before it.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from full_disk import account, contents, run_all
from results import keep
from tiny_run import Scene, less_repetition, save_model

from sedaq.kernels.timing import clock

SOURCE = Path(__file__).with_suffix(".c")
LOADED = "SEDAQ_FAILING_CALLS"
YEAR = 365 * 86400


def load_before_libc() -> ctypes.CDLL:
    """The library; this script starts itself again with it."""
    if LOADED not in os.environ:
        library = Path(tempfile.mkdtemp()) / "failing_calls.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-Wall", "-o", str(library), str(SOURCE), "-ldl"], check=True)
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LD_PRELOAD": str(library), LOADED: str(library)})
    found = ctypes.CDLL(os.environ[LOADED])
    found.expect.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_long, ctypes.c_longlong)
    return found


def one_point(
    calls: ctypes.CDLL, scene: Scene, expected: dict[str, str], *, fails_at: int = 0, jumps_at: int = 0, jump: int = 0
) -> dict[str, Any]:
    """Run all verbs until one fails, then all of them once more."""
    calls.expect(str(scene.folder).encode(), fails_at, errno.EIO, jumps_at, jump)
    where = {"call": fails_at} if fails_at else {"call": jumps_at, "jump_days": round(jump / 86400, 1)}
    return {**where, **account(scene, expected, lambda: calls.expect(b"", 0, 0, 0, 0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--jumps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    calls = load_before_libc()
    rng, start = random.Random(arguments.seed), clock()
    with tempfile.TemporaryDirectory() as name, less_repetition():
        model = save_model(Path(name) / "model")

        def fresh() -> Scene:
            shutil.rmtree(Path(name) / "scene", ignore_errors=True)
            scene = Scene(Path(name) / "scene")
            scene.model = model
            return scene

        scene = fresh()
        calls.expect(str(scene.folder).encode(), 0, 0, 0, 0)
        if failed := run_all(scene):
            raise RuntimeError(f"{failed}")
        n_calls, expected = calls.n_calls(), contents(scene)
        print(f"{n_calls} calls", flush=True)
        rows = []
        for point in range(arguments.points):
            rows.append(one_point(calls, fresh(), expected, fails_at=rng.randint(1, n_calls)))
            print(point, rows[-1], flush=True)
        jumps = []
        for point in range(arguments.jumps):
            jumps.append(one_point(calls, fresh(), expected, jumps_at=rng.randint(1, n_calls), jump=rng.randint(-YEAR, YEAR)))
            print(point, jumps[-1], flush=True)
    totals = {
        "calls": n_calls,
        "points": len(rows),
        "said": sum(row["code"] in (1, 2) and row["one_line"] for row in rows),
        "not_needed": sum(row["code"] == 0 for row in rows),
        "nothing_lost": sum(row["nothing_lost"] for row in rows),
        "same_in_the_end": sum(row["same_in_the_end"] for row in rows),
        "jumps": len(jumps),
        "jumps_without_effect": sum(row["code"] == 0 and row["nothing_lost"] and row["same_in_the_end"] for row in jumps),
    }
    print(totals)
    keep(
        "failing_calls",
        "python benchmarks/failing_calls.py",
        {"failures": rows, "jumps": jumps},
        totals=totals,
        seconds=round(clock() - start, 1),
    )


if __name__ == "__main__":
    main()
