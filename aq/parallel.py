"""Threads that do not change results: torch's own splits of a sum depend on how many threads there are.

So torch's operations run on one thread here. The encoder's own loops (native.py) take as many as torch was set to and sum in the same order
whatever their number. Small layers are worked on in processes beside each other (runtime/executors.py), for what is left in Python waits
for Python's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
