"""Threads that do not change results: torch's own splits of a sum depend on how many threads there are.

So torch's operations run on one thread here. The encoder's own loops (native.py) take as many as torch was set to and sum in the same order
whatever their number; small layers are worked on in processes beside each other, for what is left in Python waits for Python's lock.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_inside = threading.local()  # .threads: how many may be used by whoever is inside, 0 outside; torch's own number belongs to a thread too


def threads() -> int:
    """How many the caller may use."""
    return getattr(_inside, "threads", 0) or torch.get_num_threads()


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Set torch to one thread in the calling thread, whose number is kept for `threads`."""
    outer = getattr(_inside, "threads", 0)
    before = torch.get_num_threads()
    _inside.threads = outer or before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _inside.threads = outer
        torch.set_num_threads(before)


def _enter_worker() -> None:
    _inside.threads = 1
    torch.set_num_threads(1)


_job: Any = None  # what processes that are forked find to do


def _do(index: int) -> Any:
    function, items = _job
    return function(items[index])


def process_each(
    function: Callable[[T], R], items: Sequence[T], alone: Callable[[T], bool] = lambda item: False
) -> Generator[tuple[T, R], None, None]:
    """(item, function(item)) for each item, on as many processes as torch has threads; results should be small.

    Items that are to be `alone` come last, one after another in this process, with all threads to themselves; otherwise in order.

    Processes are forked, as torch's DataLoader does, so that models and functions need not be sent to them. Where that cannot be (a GPU in
    use, no fork), items are worked on one after another.
    """
    global _job
    together, single = [item for item in items if not alone(item)], [item for item in items if alone(item)]
    n = min(torch.get_num_threads(), len(together))
    if n < 2 or torch.cuda.is_initialized() or "fork" not in multiprocessing.get_all_start_methods():
        yield from ((item, function(item)) for item in together)
    else:
        _job = (function, together)
        pool = ProcessPoolExecutor(n, multiprocessing.get_context("fork"), _enter_worker)
        try:
            yield from zip(together, pool.map(_do, range(len(together))), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)
            _job = None
    yield from ((item, function(item)) for item in single)
