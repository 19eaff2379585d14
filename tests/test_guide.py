"""The user guide, from top to bottom, as its reader would run it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")


def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("guide_runner", ROOT / "benchmarks" / "guide.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_reader_is_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = runner(monkeypatch).blocks(PAGE)
    verbs = [block.split()[1] for block in found if block.startswith("sedaq ")]
    assert verbs == ["inspect", "probe", "probe", "fit", "search", "apply", "evaluate", "report"]
    assert len(found) == len(verbs) + 1 and "DiffusionPipeline.from_pretrained" in found[-1]
    assert [int(n) for n in re.findall(r"printed\((\d+)", PAGE)] == list(range(1, len(found) + 1)), "each has its output below it"


@pytest.mark.slow
def test_the_guide_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = []
    for block in runner(monkeypatch).blocks(PAGE):
        arguments = ["-m", *block.split()] if block.startswith("sedaq ") else ["-c", block]
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}: {done.stderr[-2000:]}"
        printed.append(done.stdout)
    limit = 3_100_000
    assert sum(path.stat().st_size for path in (tmp_path / "small").rglob("*") if path.is_file()) <= limit
    assert "noise ceiling" in printed[3] and "bits a weight" in printed[5] and "PSNR" in printed[6]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert printed[8].strip() == "(1, 32, 32, 1)"
