"""Run docs/guide.md from top to bottom, in an empty folder:  python benchmarks/guide.py      → results/guide.json

Its indented blocks are run in order, `sedaq …` on the command line and the others in Python. What each printed, and its seconds, are kept for the page.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import keep

import sedaq
from sedaq.kernels.timing import clock

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guide.md"
_RENDERED = re.compile(r"<!-- = .*?<!-- end -->", re.DOTALL)


def blocks(page: str) -> list[str]:
    """The indented blocks that a reader is to run, without what was printed."""
    text = _RENDERED.sub("", page)
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    return ["\n".join(line[4:] for line in block.strip("\n").splitlines()) for block in found if block.strip()]


def run(block: str, folder: Path) -> tuple[str, float]:
    """What it printed, and its seconds. Raises SystemExit where it failed."""
    arguments = ["-m", *block.split()] if block.startswith("sedaq ") else ["-c", block]
    start = clock()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{block}: {done.stderr}")
    return done.stdout.rstrip(), clock() - start


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks(PAGE.read_text(encoding="utf-8")):
            printed, seconds = run(block, Path(folder))
            rows.append({"block": block, "printed": printed, "seconds": seconds})
            print(f"{seconds:.0f} s: {block.splitlines()[0]}", flush=True)
        full = sedaq.evaluate("digits-sd", images=128, sampling=sedaq.SamplingConfig(guidance=2.0)).metrics["fid"]["value"]
    keep("guide", "python benchmarks/guide.py", rows, full_precision=full)


if __name__ == "__main__":
    main()
