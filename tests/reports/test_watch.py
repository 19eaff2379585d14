"""What is going on in a run, as `sedaq watch` and the report show it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sedaq.errors import InputError
from sedaq.reports.watch import command_rows, state_of
from sedaq.runtime.status import Command, Stage
from sedaq.sensitivity.settings import Settings
from sedaq.storage import append_record, write_json

NOW = time.time()
AT_WORK = Command("probe", "here", 12, NOW - 60, NOW, 2, (Stage("encoding", 5, 5, 9.0, 0.0), Stage("probing", 3, 12, 90.0, 270.0)), ())


def test_a_command_s_row_says_how_far_it_is() -> None:
    (row,) = command_rows((AT_WORK,))
    assert row["where"] == "here 12 + 2" and row["at"] == "probing" and row["done"] == "3 of 12"
    assert row["a minute"] == "2.0" and row["left"] == "4 min 30 s" and row["state"] == "at work"
    (row,) = command_rows((replace(AT_WORK, is_alive=False, warnings=("one", "two")),))
    assert row["left"] == "" and row["state"].startswith("was killed after") and row["last warning"] == "two"
    (row,) = command_rows((replace(AT_WORK, stages=()),))
    assert row["at"] == row["done"] == row["a minute"] == ""


def test_the_state_counts_plans_by_purpose_and_names_killed_commands(tmp_path: Path) -> None:
    subject = {"name": "dit", "fingerprint": "0", "argument": None}
    write_json(tmp_path / "run.json", "run", {"subject": subject, "settings": Settings().to_dict()})
    probe = {"plan_hash": "0", "layers": {}, "bits_per_weight": 2.0, "seed": 0, "n_images": 16, "steps": 2, "metrics": {}}
    for key, purpose in (("1", "probe"), ("2", "probe"), ("3", "verify")):
        record = {"key": key, "purpose": purpose, "extractor": "embedded", "reference": "test", **probe}
        append_record(tmp_path / "probes.jsonl", "probe", record)
    command = {**AT_WORK.to_dict(), "pid": os.getpid()}
    del command["is_alive"]
    write_json(tmp_path / ".status.here-1.json", "status", command)
    state = state_of(tmp_path)
    assert state.subject == "dit" and state.n_measured == {"probe": 2, "verify": 1}
    assert [found.is_alive for found in state.commands] == [False] and not state.is_at_work
    assert state_of(tmp_path, without_pid=os.getpid()).commands == ()
    assert state.to_dict()["commands"][0]["stages"][1]["done"] == 3


def test_no_run_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        state_of(tmp_path)
