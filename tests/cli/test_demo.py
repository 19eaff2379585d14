"""The demo is stopped and run again: what is finished is kept, and what is somebody else's stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sklearn.ensemble import RandomForestRegressor

from sedaq import api
from sedaq.cli import demo
from sedaq.cli.main import main
from sedaq.reports import run_report
from sedaq.sensitivity.explanation import explanation
from sedaq.sensitivity.predictor import cross_validation
from sedaq.sensitivity.probing.prober import Measurement, Prober
from sedaq.storage import read_records

from .conftest import Made

SMALL = {"N_CONFIGS": 14, "PROBE_IMAGES": 32, "TUNE_STEPS": 4, "N_IMAGES": 16, "FRONT_BITS": (3.0,), "FRONT_IMAGES": 16}


@pytest.fixture(autouse=True)
def less_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (run_report, "N_SHOWN", 2),
        (cross_validation, "REPEATS", 1),
        (cross_validation, "BOOTSTRAPS", 20),
        (cross_validation, "RandomForestRegressor", lambda _, **settings: RandomForestRegressor(5, **settings)),
        (explanation, "N_DRAWS", 10),
        (explanation, "N_SPLITS", 2),
    ):
        monkeypatch.setattr(module, name, value)


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, measured = tmp_path / "demo", list[str]()
    for name, value in {"SUBJECT": made.subject, **SMALL}.items():
        monkeypatch.setattr(demo, name, value)
    measure = Prober.sample_and_measure

    def counted(self: Prober, formats: Any, purpose: str, *how: Any) -> Measurement:
        if measured.count("probe") == 5 and not out.with_name("again").exists():
            raise KeyboardInterrupt
        measured.append(purpose)
        return measure(self, formats, purpose, *how)

    monkeypatch.setattr(Prober, "sample_and_measure", counted)
    assert main(["demo", "--out", str(out)]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert len(list(read_records(out / "probes.jsonl", "probe"))) == 5 and not (out / demo.MARK_FILE).exists()
    out.with_name("again").touch()
    assert main(["demo", "--out", str(out)]) == 0
    assert measured.count("probe") == SMALL["N_CONFIGS"], "none is measured twice"
    printed = capsys.readouterr().out
    assert "searched + tuned" in printed and printed.strip().endswith("report.html") and (out / "report.html").exists()


def test_fresh_forgets_what_a_stopped_demo_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first stage has ended it has no mark, and is known by its settings."""
    monkeypatch.setattr(api.Run, "probe", stop)
    for images, code in ((demo.PROBE_IMAGES, 130), (None, 130), (64, 2)):
        folder = tmp_path / str(images)
        api.Run(folder, demo.SUBJECT, images=images)._opened.write()
        (folder / "left").touch()
        assert main(["demo", "--fresh", "--out", str(folder)]) == code
        assert (folder / "left").exists() == (code == 2)


def test_a_demo_of_an_earlier_version_is_begun_anew_only_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.Run(tmp_path / "demo", demo.SUBJECT)._opened.write()
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds a demo of an earlier version, with probes of 512 images; start over with --fresh" in line
