"""Threads and processes keep order, pass exceptions on, leave torch as they found it, and do not change results."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from sedaq.aq.parallel import one_thread_an_operation, process_each, threads
from sedaq.errors import InputError

WAIT = 20  # seconds


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_operation_runs_on_one_thread_and_the_callers_number_is_kept(n):
    with torch_threads(n):
        assert threads() == n
        with one_thread_an_operation():
            assert torch.get_num_threads() == 1 and threads() == n
            with one_thread_an_operation():
                assert torch.get_num_threads() == 1 and threads() == n
            assert torch.get_num_threads() == 1 and threads() == n
        assert torch.get_num_threads() == n


# -- what is left behind -----------------------------------------------------------------------------------------------------------------


def test_an_exception_inside_one_thread_an_operation():
    with torch_threads(2):
        with pytest.raises(KeyError), one_thread_an_operation():
            raise KeyError
        assert torch.get_num_threads() == 2


def test_callers_on_two_threads_at_once():
    """The second comes while the first is inside and leaves after it; torch counts threads for each of the two."""
    ready, first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(4))
    seen: dict[str, int] = {}

    def second() -> None:
        torch.set_num_threads(2)
        seen["second before"] = torch.get_num_threads()
        ready.set()
        assert first_is_in.wait(WAIT)
        with one_thread_an_operation():
            seen["second inside"] = torch.get_num_threads()
            second_is_in.set()
            assert first_is_out.wait(WAIT)
        seen["second after"] = torch.get_num_threads()

    with torch_threads(2):
        other = threading.Thread(target=second)
        other.start()
        assert ready.wait(WAIT)
        with one_thread_an_operation():
            first_is_in.set()
            assert second_is_in.wait(WAIT)
            seen["first inside"] = torch.get_num_threads()
        first_is_out.set()
        other.join()
        seen["first after"] = torch.get_num_threads()
    assert seen == {"second before": 2, "second inside": 1, "second after": 2, "first inside": 1, "first after": 2}


# -- processes ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_processes_give_results_in_the_order_of_the_items(n, count):
    def slow_at_first(item: int) -> tuple[int, int]:
        time.sleep(0.2 * (item == 0))
        return item**2, os.getpid()

    with torch_threads(n):
        found = list(process_each(slow_at_first, list(range(count))))
        assert torch.get_num_threads() == n
    assert [(item, square) for item, (square, _) in found] == [(item, item**2) for item in range(count)]
    processes = {process for _, (_, process) in found}
    if min(n, count) < 2:
        assert processes <= {os.getpid()}
    else:
        assert os.getpid() not in processes and len(processes) <= n


def test_each_process_has_one_thread_and_starts_no_more():
    def inner(_: int) -> tuple[int, set[int]]:
        return threads(), {process for _, process in process_each(lambda _: os.getpid(), [0, 1])}

    with torch_threads(2):
        assert all(number == 1 and len(processes) == 1 for _, (number, processes) in process_each(inner, [0, 1, 2]))


def test_those_that_are_to_be_alone_come_last_here_and_with_all_threads():
    with torch_threads(2):
        found = list(process_each(lambda item: (os.getpid(), torch.get_num_threads()), [5, 1, 6, 2], alone=lambda item: item > 4))
    assert [item for item, _ in found] == [1, 2, 5, 6]
    assert all((process == os.getpid(), number) == (item > 4, 2 if item > 4 else 1) for item, (process, number) in found)


def test_exceptions_of_processes_come_through():
    def fails(item: int) -> int:
        if item == 1:
            raise InputError("layer x: cannot be")
        return item

    with torch_threads(2):
        results = process_each(fails, [0, 1, 2])
        assert next(results) == (0, 0)
        with pytest.raises(InputError, match="layer x: cannot be"):
            next(results)
        assert list(process_each(lambda item: -item, [1, 2])) == [(1, -1), (2, -2)], "the next ones are not disturbed"


def test_a_caller_that_does_not_want_the_rest(tmp_path):
    def leave_a_trace(item: int) -> int:
        (tmp_path / str(item)).touch()
        time.sleep(0.05)
        return item

    with torch_threads(2):
        results = process_each(leave_a_trace, list(range(200)))
        assert [next(results), next(results)] == [(0, 0), (1, 1)]
        results.close()
    assert len(list(tmp_path.iterdir())) < 100
