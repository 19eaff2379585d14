"""Samplers that fail in the middle of the work: one line, and what was finished is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from sedaq.cli.main import main

from .conftest import SUBJECT

NOISE = "        x = image_noise("


def test_a_sampler_that_meets_an_end_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, flag = tmp_path / "failing.py", tmp_path / "no more noise"
    failing = (
        f"        import os\n        if n_images == 16 and os.path.exists({str(flag)!r}):\n            raise EOFError('no more noise')\n"
    )
    file.write_text(SUBJECT.replace(NOISE, failing + NOISE))
    words = ["probe", f"{file}:make", "--run", str(tmp_path / "run"), "--configs", "2", "--images", "16", "--steps", "2"]
    flag.touch()
    assert main(words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "━" not in line]
    assert lines[-1] == "sedaq: failed with EOFError: no more noise (--debug shows where)"
    flag.unlink()
    assert main(words) == 0
