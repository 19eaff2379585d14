"""Commands that were stopped go on, and others say what is at work and show the plan that is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sedaq.aq.export import apply as export
from sedaq.aq.formats import AS_IS
from sedaq.aq.plans.plan import Plan
from sedaq.aq.plans.store import EncodingStore
from sedaq.cli.main import main
from sedaq.models.loading import load
from sedaq.progress import track
from sedaq.runtime.status import telling_in

from .conftest import Made


def test_an_apply_without_a_run_that_was_stopped_goes_on(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, kept = tmp_path / "small", tmp_path / ".small.encodings"
    command = ["apply", made.subject, str(made.plan), "--out", str(out)]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "save_folder", stop)
        assert main(command) == 130
    assert not out.exists() and list(kept.rglob("encodings/*.safetensors"))

    def again(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(EncodingStore, "_encode", again)
    monkeypatch.setattr(EncodingStore, "_calibrated", again)
    assert main(command) == 0
    assert out.exists() and not kept.exists()


def test_a_tuning_that_was_stopped_after_its_record_has_one_record(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    command = ["apply", made.subject, str(made.plan), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "small")]
    command += ["--tune-steps", "2", "--tune-trajectories", "8"]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export.shutil, "rmtree", stop)
        assert main(command) == 130
    assert main(command) == 0 and not (tmp_path / ".small.tuning").exists()
    lines = (tmp_path / "run" / "tunings.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["small"]


def test_a_report_is_about_the_plan_that_is_named(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    plan = Plan.load(made.plan)
    changed = tmp_path / "mine.json"
    Plan.of(load(made.subject), {name: plan.formats[name] for name in plan.formats} | {"blocks.1": AS_IS}, encoding=plan.encoding).save(
        changed
    )
    page = tmp_path / "page.html"
    command = ["report", "--run", str(tmp_path / "run"), "--subject", made.subject, "--out", str(page)]
    assert main([*command, "--plan", str(changed)]) == 0
    of_mine = page.read_text()
    assert main(command) == 0
    assert "mine.json" in of_mine and "mine.json" not in page.read_text()
    assert main([*command, "--plan", str(tmp_path / "absent.json")]) == 2
    assert "absent.json" in capsys.readouterr().err


def test_watch_shows_what_is_at_work(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    assert main(["watch", "--run", str(tmp_path / "run")]) == 0
    assert "nothing is at work" in capsys.readouterr().out
    with telling_in(tmp_path / "run", "probe"):
        for _ in track(range(1), "probing", 12, done=3):
            assert main(["watch", "--run", str(tmp_path / "run"), "--json"]) == 0
            (command,) = json.loads(capsys.readouterr().out)["commands"]
            assert command["verb"] == "probe" and command["is_alive"] and command["stages"][0]["done"] == 3
            assert main(["watch", "--run", str(tmp_path / "run")]) == 0
            shown = capsys.readouterr().out
            assert "probing" in shown and "3 of 12" in shown and "at work" in shown
    assert main(["watch", "--run", str(tmp_path / "absent")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_report_says_what_is_at_work_meanwhile(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    page, command = tmp_path / "page.html", ["report", "--run", str(tmp_path / "run"), "--subject", made.subject]
    assert main([*command, "--out", str(page)]) == 0
    assert "While this page was written" not in page.read_text(), "the report itself is no news"
