"""Tasks: what is there is verified and used, what is missing or damaged is made, by one process at a time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sedaq import storage
from sedaq.errors import InputError
from sedaq.runtime.tasks import Task, json_task, locked, tensor_task
from sedaq.storage import read_json, write_json


def square_of(n: int, folder: Path, made: list[int], wait: float = 0) -> Task[dict[str, int]]:
    """A task that notes in `made` and in a file of its own that it was worked on."""

    def make() -> dict[str, int]:
        time.sleep(wait)
        made.append(n)
        (folder / f"made by {os.getpid()}").touch()
        return {"square": n * n}

    return Task(
        f"square of {n}",
        folder / "squares" / f"{n}.json",
        make,
        write=lambda path, value: write_json(path, "square", value),
        read=lambda path: read_json(path, "square"),  # type: ignore[return-value]
    )


def test_an_artifact_is_made_once_and_read_afterwards(tmp_path: Path) -> None:
    made: list[int] = []
    assert not square_of(3, tmp_path, made).is_done
    assert [square_of(3, tmp_path, made).result() for _ in range(3)] == [{"square": 9}] * 3
    assert made == [3] and square_of(3, tmp_path, made).is_done and not square_of(4, tmp_path, made).is_done


@pytest.mark.parametrize("damage", [b"", b"{", b"not json", None])
def test_a_damaged_artifact_is_made_again_and_the_log_says_so(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[int] = []
    task = square_of(3, tmp_path, made)
    task.result()
    whole = task.path.read_bytes()
    task.path.write_bytes(whole.replace(b"9", b"8", 1) if damage is None else damage)
    with caplog.at_level(logging.WARNING, "sedaq"):
        assert task.result() == {"square": 9}
    assert made == [3, 3] and task.path.read_bytes() == whole
    assert caplog.messages[0] == f"{task.path}: damaged; the square of 3 is made again"


@pytest.mark.parametrize("kind", ["json", "tensor"])
def test_an_artifact_under_another_name_is_not_taken_for_it(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def task(n: int) -> Task[Any]:
        if kind == "json":
            return json_task(f"square of {n}", tmp_path / f"{n}.json", "square", lambda: {"square": n * n})
        return tensor_task(f"square of {n}", tmp_path / f"{n}.safetensors", "square", lambda: torch.tensor([n * n]))

    three, four = task(3), task(4)
    assert three.result() == three.result() and four.result() == four.result() != three.result() and caplog.text == ""
    shutil.copy(four.path, three.path)
    assert three.result() == three.make() and caplog.messages[0] == f"{three.path}: damaged; the square of 3 is made again"


def test_what_nothing_can_be_done_with_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(content: dict[str, int]) -> None:
        if content["square"] != 9:
            raise InputError("it is no square of 3")

    task = json_task("square of 3", tmp_path / "3.json", "square", lambda: {"square": 9}, check=refuse)
    for content in ({"square": 8}, {}):
        write_json(task.path, "square", content)
        assert task.result() == {"square": 9}
    assert caplog.text.count("damaged; the square of 3 is made again") == 4, "twice each, for it is read again under its lock"


def test_an_artifact_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> int:
        raise InputError("cannot be")

    task = Task("answer", tmp_path / "answer", fail, write=lambda path, value: None, read=lambda path: 0)
    with pytest.raises(InputError, match="cannot be"):
        task.result()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_half_written_goes_when_the_artifact_is_made(tmp_path: Path) -> None:
    """A process that is killed in the middle of a write cannot clear up; others' files beside it stay."""
    task, beside = square_of(7, tmp_path, []), tmp_path / "squares"
    half = Path(tmp_path / "half.py")
    half.write_text(
        "import os, signal, sys\nfrom pathlib import Path\nfrom sedaq import storage\n"
        "storage.write_atomically_by(Path(sys.argv[1]), lambda path: (path.write_text('half'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    killed = subprocess.run([sys.executable, str(half), str(task.path)])
    assert killed.returncode == -signal.SIGKILL and len(list(beside.iterdir())) == 1
    others = {".77.json.0123abcd", ".7.json.notes", "7.json.0123abcd"}
    for name in others:
        (beside / name).touch()
    assert task.result() == {"square": 49}
    assert {path.name for path in beside.iterdir()} == {"7.json", *others}


def test_two_processes_that_ask_at_once_make_an_artifact_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=square_of(5, tmp_path, [], wait=0.3).result) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("made by *"))) == 1
    assert square_of(5, tmp_path, []).result() == {"square": 25}
    assert [path.name for path in (tmp_path / "squares").iterdir()] == ["5.json"]


def test_tasks_may_ask_for_other_artifacts(tmp_path: Path) -> None:
    inner = square_of(2, tmp_path, [])
    outer = Task("sum", tmp_path / "squares" / "sum.json", lambda: {"square": inner.result()["square"] + 1}, inner.write, inner.read)
    assert outer.result() == {"square": 5} and inner.is_done


def test_a_folder_that_cannot_be_written_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written .*choose a folder that you may write to"), locked(tmp_path / "file" / "x"):
        pass


def test_files_and_folders_are_flushed_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(storage.os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    square_of(3, tmp_path, []).result()
    assert len(flushed) == 2
    assert flushed[0].startswith(f"{tmp_path}/squares/.3.json.") and flushed[1] == f"{tmp_path}/squares"
