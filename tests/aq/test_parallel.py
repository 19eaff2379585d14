"""Operations on one thread leave torch as they found it, whatever happens inside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from sedaq.aq.parallel import one_thread_an_operation, threads

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
