"""Threads that do not change results: torch's own splits of a sum depend on how many threads there are, these don't.

Inside, every torch operation runs on one thread, and independent pieces of work, whose number does not depend on the machine, are spread
over as many threads as torch was set to, or processes: many small operations would spend their time waiting for Python's lock.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_inside = threading.local()  # .threads: how many may be used by whoever is inside, 0 outside; torch's own number belongs to a thread too


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Set torch to one thread in the calling thread, whose number is kept for `parallel_each`."""
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


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """[function(item) for item in items] on as many threads as torch was set to; one within another runs on its caller's thread."""
    items = list(items)
    with one_thread_an_operation():
        if len(items) < 2 or _inside.threads < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(_inside.threads, len(items)), initializer=_enter_worker) as pool:
            return list(pool.map(function, items))


_job: Any = None  # what processes that are forked find to do


def _do(index: int) -> Any:
    function, items = _job
    return function(items[index])


def process_each(function: Callable[[T], R], items: Sequence[T]) -> Generator[R, None, None]:
    """function(item) for each item, in order, on as many processes as torch has threads; results should be small.

    Processes are forked, as torch's DataLoader does, so that models and functions need not be sent to them. Where that cannot be (a GPU in
    use, no fork), items are worked on one after another.
    """
    global _job
    n = min(torch.get_num_threads(), len(items))
    if n < 2 or torch.cuda.is_initialized() or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(function, items)
        return
    _job = (function, items)
    pool = ProcessPoolExecutor(n, multiprocessing.get_context("fork"), _enter_worker)
    try:
        yield from pool.map(_do, range(len(items)))
    finally:
        pool.shutdown()
        _job = None
