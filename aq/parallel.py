"""Threads that do not change results: torch's own splits of a sum depend on how many threads there are, these don't.

Inside, every torch operation runs on one thread, and independent pieces of work, whose number does not depend on the machine, are spread
over as many threads as torch was set to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

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


def parallel_each(function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """function(item) for each item, in order, on as many threads as torch was set to; one within another runs on its caller's thread."""
    items = list(items)
    with one_thread_an_operation():
        if len(items) < 2 or _inside.threads < 2:
            yield from map(function, items)
            return
        pool = ThreadPoolExecutor(min(_inside.threads, len(items)), initializer=_enter_worker)
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown()


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """[function(item) for item in items], as `parallel_each` does it."""
    return list(parallel_each(function, items))
