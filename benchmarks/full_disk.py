"""A full disk:  python benchmarks/full_disk.py [--points 50]      → results/full_disk.json

Runs `probe → fit → search → apply → evaluate` of a tiny model on a disk of its own (tmpfs) that a file fills up but for a random number of bytes, until a verb
fails. It must say so in one line with exit code 1 or 2; what was finished must still be there, byte for byte; and the same verbs must go on to the same files once
there is space.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from results import keep
from tiny_run import Scene, call, less_repetition, save_model

from sedaq.kernels.timing import clock

DISK = 64 << 20
VERBS = ("probe", "fit", "search", "apply", "keep")
NOT_COMPARED = (".lock", "demo.json")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of DISK bytes in memory. Raises RuntimeError where mounting is not allowed."""
    place = folder / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"tmpfs cannot be mounted here ({done.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # caches may hold files open


def fill(disk: Path, left: int) -> None:
    """Leave so many bytes of the disk."""
    free = shutil.disk_usage(disk).free
    with open(disk / "ballast", "wb") as file:
        remaining = free - left
        while remaining > 0:
            remaining -= file.write(bytes(min(remaining, 1 << 20)))


def contents(scene: Scene) -> dict[str, str]:
    """What is there, by path: hashes of files; of journals the keys of their records, for their seconds differ."""
    found = {}
    for top in (scene.run, scene.written):
        for path in sorted(path for path in top.rglob("*") if path.is_file() and not path.name.endswith(NOT_COMPARED)):
            name = str(path.relative_to(scene.folder))
            if path.suffix == ".jsonl":
                lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]  # one that was cut short is no record
                found |= {
                    f"{name} {line.get('key') or line['name']}": json.dumps(line["metrics"], sort_keys=True)
                    for line in lines
                    if "metrics" in line
                }
            elif path.name.startswith("."):
                found[name] = "left behind"
            else:
                found[name] = _hash(path)
    return found


def _hash(path: Path) -> str:
    """Of a file's bytes; of encodings those of the tensors, for headers hold seconds."""
    data = path.read_bytes()
    if path.parent.name == "encodings":
        data = data[8 + int.from_bytes(data[:8], "little") :]
    return hashlib.sha256(data).hexdigest()


def run_all(scene: Scene) -> tuple[str, Any] | None:
    """The first verb that fails, and what it said."""
    for verb in VERBS:
        said = call(*scene.commands()[verb], limit=120)
        if said.code:
            return verb, said
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, rows, start = random.Random(arguments.seed), [], clock()
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name)) as disk, less_repetition():
        model = save_model(Path(name) / "model")

        def fresh() -> Scene:
            shutil.rmtree(disk / "scene", ignore_errors=True)
            scene = Scene(disk / "scene")
            scene.model = model
            return scene

        before = shutil.disk_usage(disk).used
        scene = fresh()
        if failed := run_all(scene):
            raise RuntimeError(f"{failed}")
        expected, needed = contents(scene), shutil.disk_usage(disk).used - before
        for point in range(arguments.points):
            rows.append(one_point(disk, fresh(), rng.randrange(needed), expected))
            print(point, rows[-1], flush=True)
    outcomes = Counter((row["code"], row["one_line"], row["nothing_lost"], row["same_in_the_end"]) for row in rows)
    print(outcomes)
    summary = {
        "points": len(rows),
        "failed_in_one_line": sum(row["one_line"] and row["code"] in (1, 2) for row in rows),
        "nothing_lost": sum(row["nothing_lost"] for row in rows),
        "same_in_the_end": sum(row["same_in_the_end"] for row in rows),
        "verbs": dict(Counter(row["verb"] for row in rows)),
    }
    keep(
        "full_disk", f"python benchmarks/full_disk.py --points {arguments.points}", rows, totals=summary, seconds=round(clock() - start, 1)
    )


def one_point(disk: Path, scene: Scene, left: int, expected: dict[str, str]) -> dict[str, Any]:
    """Fill the disk but for `left` bytes, run until a verb fails, make space, and run again."""
    fill(disk, left)
    return {"left": left, **account(scene, expected, (disk / "ballast").unlink)}


def account(scene: Scene, expected: dict[str, str], end_harm: Callable[[], object]) -> dict[str, Any]:
    """Run all verbs until one fails, end what harms them, and run all of them again: what was said, lost, and different in the end."""
    failed = run_all(scene)
    end_harm()
    held = contents(scene) if scene.run.exists() else {}
    verb, said = failed if failed is not None else ("none", None)
    lines = [] if said is None else [line for line in said.words.splitlines() if line.startswith("sedaq")]
    lost = [name for name, value in held.items() if value == "left behind" or expected.get(name, value) != value]
    again = run_all(scene)
    found = contents(scene)
    differing = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    return {
        "verb": verb,
        "code": 0 if said is None else said.code,
        "one_line": said is None or (len(lines) == 1 and "failed with" not in said.words),
        "said": "" if said is None else said.words[-200:].replace(str(scene.folder), "FOLDER"),
        "nothing_lost": not lost,
        "lost": lost[:3],
        "same_in_the_end": again is None and not differing,
        "differing": ([again[0], again[1].words[-160:]] if again else []) + differing[:3],
    }


if __name__ == "__main__":
    main()
