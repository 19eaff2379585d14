"""Executors: they differ in where work runs, and a worker that dies takes nothing with it but its own item."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from sedaq.errors import InputError, SedaqError, WorkerError
from sedaq.progress import listening, track
from sedaq.runtime.executors import Executor, Forked, Processes, Serial, parse_executor

sys.path.append(str(Path(__file__).parent))  # where spawned workers find the module, too
from worker_functions import OpensHereOnly, describe, die_at_one, die_so_often, die_the_first_time, end_of_file, fail_at_one


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["pytest"])  # what a spawned interpreter would otherwise run again
    with torch_threads(2):
        yield


def name_of(value: object) -> str:
    """The same in every process, as pytest-xdist wants it; a function in a field would bring its address."""
    return str(value) if isinstance(value, int) else type(value).__name__


@pytest.mark.parametrize("executor, count", [(Processes(2), 7), *((e, n) for e in (Serial(), Forked()) for n in (0, 1, 2, 7))], ids=name_of)
def test_results_do_not_depend_on_the_executor(executor: Executor, count: int) -> None:
    share = {3} if executor == Processes(2) else {1}
    with torch_threads(6 if executor == Processes(2) else 2), executor.workers(describe) as run:
        found = list(run(range(count)))
        again = list(run(range(count)))
    assert sorted((item, answer["square"]) for item, answer in found) == [(item, item**2) for item in range(count)]
    processes = {answer["process"] for _, answer in found}
    threads = {answer["threads"] for _, answer in found}
    if executor == Serial() or (executor == Forked() and count < 2):
        assert processes <= {os.getpid()} and threads <= {2}
    else:
        assert os.getpid() not in processes and len(processes) <= 2 and threads <= share
    assert {answer["process"] for _, answer in again} <= processes | {os.getpid()}, "workers stay for the next items"
    assert multiprocessing.active_children() == [] and torch.get_num_threads() == 2


def test_results_come_as_they_are_finished() -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.5 * (item == 0))
        return -item

    with Forked().workers(slow_at_first) as run:
        assert list(run([0, 1, 2])) == [(1, -1), (2, -2), (0, 0)]


def test_a_fork_has_closures_and_one_thread_and_starts_no_more() -> None:
    def inner(_: int) -> set[int]:
        with Forked().workers(lambda _: os.getpid()) as run:
            return {process for _, process in run([0, 1])}

    with Forked().workers(inner) as run:
        assert all(len(processes) == 1 for _, processes in run([0, 1, 2]))


def test_those_that_are_to_be_alone_come_last_here_and_with_all_threads() -> None:
    with Forked(alone=lambda item: item > 4).workers(describe) as run:
        found = list(run([5, 1, 6, 2]))
    assert sorted(item for item, _ in found[:2]) == [1, 2] and [item for item, _ in found[2:]] == [5, 6]
    assert all((answer["process"] == os.getpid()) == (item > 4) for item, answer in found)
    assert all(answer["threads"] == (2 if item > 4 else 1) for item, answer in found)


# -- failures ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", [Serial(), Forked()], ids=name_of)
def test_exceptions_come_through_and_the_next_items_are_not_disturbed(executor: Executor, tmp_path: Path) -> None:
    with executor.workers(partial(fail_at_one, tmp_path)) as run:
        with pytest.raises(InputError, match="layer x: cannot be"):
            list(run([1, 2]))
        assert sorted(run([3, 4])) == [(3, 3), (4, 4)]


@pytest.mark.parametrize("executor", [Serial(), Processes(2), Forked()], ids=name_of)
def test_a_function_that_meets_an_end_of_file_has_not_died(executor: Executor) -> None:
    """A pipe to a dead process ends so, too."""
    with pytest.raises(EOFError, match="no more noise"), executor.workers(end_of_file) as run:
        list(run([1, 2]))


@pytest.mark.parametrize("executor", [pytest.param(Processes(2), marks=pytest.mark.slow), Forked()], ids=name_of)
def test_a_worker_that_is_killed_is_named_with_its_item_and_loses_nothing_else(executor: Executor, tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerError, match="item 1: its worker process was killed by SIGKILL, 3 times; all else is done and kept"),
        executor.workers(partial(die_at_one, tmp_path), name="item {}".format) as run,
    ):
        list(run([0, 1, 2, 3]))
    assert all((tmp_path / str(item)).exists() for item in (0, 2, 3)), "all others are done"
    assert not (tmp_path / "1").exists() and multiprocessing.active_children() == []


def test_an_item_whose_worker_dies_by_chance_is_done_in_the_end(tmp_path: Path) -> None:
    """Where workers of other items die, too, three deaths are no proof."""
    with Forked().workers(partial(die_so_often, tmp_path, {1: 5, 2: 1})) as run:
        assert sorted(run([1, 2, 3])) == [(1, 1), (2, 2), (3, 3)]


def test_an_item_that_always_kills_is_named_although_others_die_by_chance(tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerError, match="^1: its worker process was killed by SIGKILL, 6 times; all else is done and kept"),
        Forked().workers(partial(die_so_often, tmp_path, {1: 99, 2: 1})) as run,
    ):
        list(run([1, 2, 3]))
    assert len(list(tmp_path.glob("1 tried *"))) == 6


def test_workers_go_on_after_one_was_killed(tmp_path: Path) -> None:
    with Forked().workers(partial(die_at_one, tmp_path)) as run:
        with pytest.raises(WorkerError):
            list(run([1, 2]))
        assert sorted(run([3, 4, 5])) == [(3, 3), (4, 4), (5, 5)]


@pytest.mark.parametrize("executor", [Processes(2), Forked()], ids=name_of)
def test_what_a_killed_worker_was_at_is_done_by_another(executor: Executor, tmp_path: Path) -> None:
    for item in (2, 3):
        (tmp_path / f"tried {item}").touch()  # so that one dies alone: it takes a new one seconds to start
    with executor.workers(partial(die_the_first_time, tmp_path)) as run:
        assert sorted(run([1, 2, 3])) == [(1, 1), (2, 2), (3, 3)]
    assert multiprocessing.active_children() == []


ORPHANS = """
import os, sys, time
from sedaq.runtime.executors import Forked
import torch

def wait_long(item):
    print(os.getpid(), flush=True)
    time.sleep(120)

torch.set_num_threads(2)
with Forked().workers(wait_long) as run:
    list(run([1, 2]))
"""


def test_workers_end_with_their_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(process.stdout.readline()) for _ in range(2)]
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while any(psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE for worker in workers):
            assert time.monotonic() < deadline, "a worker lives on"
            time.sleep(0.05)


def leave(code: int) -> None:
    os._exit(code)


def test_a_worker_that_exits_is_named_with_its_code() -> None:
    with pytest.raises(WorkerError, match="^3: its worker process ended with exit code 3, 3 times"), Forked().workers(leave) as run:
        list(run([3, 3]))


def test_a_function_that_cannot_be_opened_elsewhere_says_why() -> None:
    with pytest.raises(InputError, match="opens nowhere else"), Processes(2).workers(OpensHereOnly(os.getpid())) as run:
        list(run([1, 2]))


def test_an_answer_that_cannot_be_sent_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(SedaqError, match="cannot be sent"), Forked().workers(lambda item: lambda: item) as run:
        list(run([1, 2]))


def test_a_caller_that_does_not_want_the_rest(tmp_path: Path) -> None:
    def leave_a_trace(item: int) -> int:
        (tmp_path / str(item)).touch()
        time.sleep(0.05)
        return item

    with Forked().workers(leave_a_trace) as run:
        first = next(run(range(200)))
        assert first[0] == first[1]
        assert sorted(run([300, 301])) == [(300, 300), (301, 301)], "no answer is taken for another's"
    assert len(list(tmp_path.iterdir())) < 100


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    def note_the_process(_: int) -> None:
        (tmp_path / str(os.getpid())).touch()

    def parent() -> None:
        torch.set_num_threads(2)
        with Forked().workers(note_the_process) as run:
            list(run(range(10)))
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=parent)
    process.start()
    process.join()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    deadline = time.monotonic() + 20
    while workers and time.monotonic() < deadline:
        workers = [worker for worker in workers if _runs(worker)]
        time.sleep(0.05)
    assert workers == [] and len(list(tmp_path.iterdir())) == 2


def _runs(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_tell_nothing_to_their_parents_listeners(tmp_path: Path) -> None:
    def listener(_: object) -> None:
        (tmp_path / str(os.getpid())).touch()

    with listening(listener), Forked().workers(lambda item: list(track([item], "inside"))) as run:
        list(run([1, 2]))
    assert list(tmp_path.iterdir()) == []


# -- names -------------------------------------------------------------------------------------------------------------------------------


def test_executors_are_named_by_a_text() -> None:
    assert parse_executor("serial") == Serial() and parse_executor("processes:12") == Processes(12)


@pytest.mark.parametrize(
    "text",
    ["", "processes", "processes:", "processes:-1", "processes:two", "threads:2", "Serial", "processes:" + "9" * 5000, "processes:٣"],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"executor .* is unknown; use 'serial', 'processes:N' for N processes, "):
        parse_executor(text)


def test_no_processes_are_refused() -> None:
    with pytest.raises(InputError, match="'processes:0': at least 1 process is needed"):
        parse_executor("processes:0")
