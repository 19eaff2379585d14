"""Threads that do not change results: torch's own splits of a sum depend on how many threads there are, these don't.

Inside, every torch operation runs on one thread, and independent pieces of work, whose number does not depend on the machine, are spread
over as many threads as torch was set to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_lock = threading.Lock()
_users = 0
_threads = 1
_inside = threading.local()


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Set torch to one thread until the last of the callers that are inside leaves."""
    global _users, _threads
    with _lock:
        if _users == 0:
            _threads = torch.get_num_threads()
            torch.set_num_threads(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.set_num_threads(_threads)


def parallel_each(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """function(item) for each item, in order, on as many threads as torch was set to; one within another runs on its caller's thread."""
    items = list(items)
    with one_thread_an_operation():
        if len(items) < 2 or _threads < 2 or getattr(_inside, "yes", False):
            yield from map(function, items)
            return
        pool = ThreadPoolExecutor(min(_threads, len(items)), initializer=lambda: setattr(_inside, "yes", True))
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(cancel_futures=True)


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """[function(item) for item in items], as `parallel_each` does it."""
    return list(parallel_each(function, items))
