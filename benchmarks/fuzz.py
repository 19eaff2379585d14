"""Fuzzing of every reader:  python benchmarks/fuzz.py [--inputs 200000]      → results/fuzz.json

A reader takes valid inputs that were changed at random: bytes of files, values inside of JSON under a right seal, and text of a grammar. It must give a
result or raise one of sedaq's errors, within LIMIT seconds; anything else is uncaught. What hypothesis draws is a tenth of all inputs.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuzz_readers import Corpus, Reader, readers
from hypothesis import HealthCheck, given, settings
from results import keep

from sedaq.errors import SedaqError
from sedaq.kernels.timing import clock

LIMIT = 5.0


# -- the run -----------------------------------------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Without what readers log."""
    logger = logging.getLogger("sedaq")
    logger.disabled, before = True, logger.disabled
    try:
        yield
    finally:
        logger.disabled = before


def outcome_of(reader: Reader, value: Any) -> tuple[str, str]:
    """valid, refused or uncaught; and the last lines of the traceback of what is uncaught."""
    start = clock()
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            reader.read(value)
        found = "valid", ""
    except SedaqError as error:
        found = ("refused", "") if "\n" not in str(error) else ("uncaught", f"a message of several lines: {error!r}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        found = "uncaught", "".join(traceback.format_exception(error)[-3:])
    return found if clock() - start <= LIMIT else ("uncaught", f"took {clock() - start:.1f} s")


def fuzz(reader: Reader, n: int, seed: int) -> Iterator[tuple[str, str, Any]]:
    """(outcome, traceback, input) of n inputs."""
    rng = random.Random(f"{seed} {reader.name}")
    n_drawn = n // 10 if reader.drawn is not None else 0
    if n_drawn:
        drawn: list[Any] = []

        @settings(max_examples=n_drawn, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        @given(reader.drawn)
        def draw(value: Any) -> None:
            drawn.append(value)

        draw()
        for value in drawn[:n_drawn]:
            yield *outcome_of(reader, value), value
    for _ in range(n - n_drawn):
        value = reader.change(rng.choice(reader.seeds), rng)
        yield *outcome_of(reader, value), value


def fuzz_all(corpus: Corpus, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """One row a reader; n inputs together."""
    all_readers = [reader for reader in readers(corpus) if reader.seeds]
    total = sum(reader.share for reader in all_readers)
    rows = []
    for reader in all_readers:
        start, wanted = clock(), max(5, round(n * reader.share / total))
        row: dict[str, Any] = {"reader": reader.name, "inputs": 0, "valid": 0, "refused": 0, "uncaught": 0, "cases": []}
        for came_to, trace, value in fuzz(reader, wanted, seed):
            row["inputs"] += 1
            row[came_to] += 1
            if came_to == "uncaught" and len(row["cases"]) < 5:
                row["cases"].append({"input": repr(value)[:2000], "trace": trace})
        rows.append({**row, "seconds": round(clock() - start, 1)})
    return rows


def main() -> None:
    from tiny_run import Scene

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder) / "scene").make()
        corpus = Corpus(scene.run, scene.model, scene.written, Path(folder) / "changed")
        rows = fuzz_all(corpus, arguments.inputs, arguments.seed)
    for row in rows:
        print(
            {key: value for key, value in row.items() if key != "cases"},
            *(case["input"] + case["trace"] for case in row["cases"]),
            flush=True,
        )
    totals = {name: sum(row[name] for row in rows) for name in ("inputs", "valid", "refused", "uncaught")}
    keep("fuzz", f"python benchmarks/fuzz.py --inputs {arguments.inputs} --seed {arguments.seed}", rows, totals=totals)
    print(totals)


if __name__ == "__main__":
    main()
