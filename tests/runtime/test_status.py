"""What commands tell of themselves: while they work, after they were killed, and never so that it harms the work."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from sedaq.progress import track
from sedaq.runtime import status
from sedaq.runtime.status import commands_in, telling, telling_in
from sedaq.storage import write_json


@dataclass
class Run:
    folder: Path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_json(tmp_path / "run.json", "run", {})
    return Run(tmp_path)


def test_a_command_is_seen_while_it_works_and_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "SECONDS_BETWEEN", 0.0)

    @telling("probe")
    def work(of: Run) -> int:
        for n in track(range(3), "probing"):
            logging.getLogger("sedaq").warning("a worker died at %d", n)
            inner(of)
            if n == 1:
                (command,) = commands_in(of.folder)
                assert (command.verb, command.pid, command.is_alive) == ("probe", os.getpid(), True)
                assert [stage.description for stage in command.stages] == ["probing"] and command.stages[0].done == 1
                assert command.warnings[0] == "a worker died at 0", "the last ones stand in the file that is written next"
        return 7

    @telling("fit")
    def inner(of: Run) -> None:
        assert all(command.verb == "probe" for command in commands_in(of.folder)), "what it calls tells nothing of its own"

    assert work(run) == 7
    assert commands_in(run.folder) == [] and [path.name for path in run.folder.iterdir()] == ["run.json"]


def test_nothing_is_written_before_the_run_is(tmp_path: Path) -> None:
    with telling_in(tmp_path / "new", "probe"):
        for _ in track(range(2), "probing"):
            assert not (tmp_path / "new").exists()


def _work_for_ever(folder: Path, ready: object) -> None:
    with telling_in(folder, "search"):
        for _ in track(range(2), "verify"):
            ready.set()  # type: ignore[attr-defined]
            signal.pause()


def test_a_killed_command_is_told_from_one_at_work_and_forgotten_by_the_next(run: Run) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_work_for_ever, args=(run.folder, ready))
    process.start()
    assert ready.wait(30)
    (command,) = commands_in(run.folder)
    assert command.is_alive and command.pid == process.pid and command.stages[0].description == "verify"
    process.kill()
    process.join()
    (command,) = commands_in(run.folder)
    assert not command.is_alive and command.verb == "search"
    with telling_in(run.folder, "fit"):
        assert commands_in(run.folder) == []


def test_a_file_that_is_none_of_ours_is_passed_over(run: Run) -> None:
    (run.folder / ".status.elsewhere-1.json").write_text("{}")
    write_json(run.folder / ".status.elsewhere-2.json", "status", {"verb": "probe"})
    assert commands_in(run.folder) == []


def test_work_goes_on_where_nothing_can_be_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise status.InputError("no space left")

    monkeypatch.setattr(status, "write_json", full)
    with telling_in(run.folder, "probe"):
        assert list(track(range(3), "probing")) == [0, 1, 2]
    assert [path.name for path in run.folder.iterdir()] == ["run.json"]
