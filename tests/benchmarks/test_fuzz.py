"""A short fuzzing of every reader; benchmarks/fuzz.py does the long one."""

from __future__ import annotations

from pathlib import Path

import fuzz
from fuzz_readers import Corpus

KEPT = Path(__file__).parents[1] / "data" / "run-now"


def test_no_changed_input_is_uncaught(tmp_path: Path) -> None:
    rows = fuzz.fuzz_all(Corpus(KEPT / "run", KEPT / "model", KEPT / "small", tmp_path), 2500, seed=7)
    assert [case for row in rows for case in row["cases"]] == []
    assert len(rows) > 40 and all(row["refused"] + row["valid"] == row["inputs"] > 0 for row in rows)
    assert sum(row["refused"] for row in rows) > 1000 < 4 * sum(row["valid"] for row in rows) + 1000
