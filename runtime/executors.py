"""Where work runs: in this process, in several, or on a cluster. Executors differ in that and in nothing else.

An executor starts workers for one function and hands them items. What the function makes it commits itself (tasks.py, journal.py), so that
finished work is kept whatever becomes of its neighbours; what it returns is small. Results come in the order of completion.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from ..errors import InputError
from .ray_executor import parse_ray
from .workers import ProcessPool

T = TypeVar("T")
R = TypeVar("R")
Workers = Callable[[Sequence[T]], Iterator[tuple[T, R]]]  # items → (item, result) as they are finished
NAMES = "'serial', 'processes:N' for N processes, 'ray:auto' or 'ray://HOST:PORT' for a Ray cluster"


class Executor(Protocol):
    """How workers are started."""

    def workers(self, function: Callable[[T], R], *, name: Callable[[T], str] = str) -> AbstractContextManager[Workers[T, R]]:
        """Workers that apply `function` to items while the block runs; they keep what they have opened from one call to the next.

        An exception of the function is raised to the caller; workers that are at an item finish it. Items and results are picklable.

        Args:
            name: what messages call an item.

        Raises:
            WorkerError: the workers of an item died three times, for example killed for lack of memory; all other items are done then.
        """
        ...


@dataclass(frozen=True)
class Serial:
    """One item after another in this process, with all its threads."""

    @contextmanager
    def workers(self, function: Callable[[T], R], *, name: Callable[[T], str] = str) -> Iterator[Workers[T, R]]:
        yield lambda items: ((item, function(item)) for item in items)


@dataclass(frozen=True)
class Processes:
    """`n` new processes, each with an equal share of the threads. The function is pickled once for each."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"executor 'processes:{self.n}': at least 1 process is needed")

    @contextmanager
    def workers(self, function: Callable[[T], R], *, name: Callable[[T], str] = str) -> Iterator[Workers[T, R]]:
        threads = max(1, torch.get_num_threads() // self.n)
        with ProcessPool(function, n=self.n, start_method="spawn", threads=threads, name=name) as pool:
            yield pool.run


@dataclass(frozen=True)
class Forked:
    """As many forks of this process as torch has threads, with one thread each: the function may be a closure over anything.

    A fork has one thread because OpenMP's threads do not survive a fork. Where forking is impossible (a GPU in use, no fork), and for less
    than two items, the work is done in this process.

    Args:
        alone: items that are done in this process with all its threads, one after another, after the others.
    """

    alone: Callable[[Any], bool] = lambda item: False

    @contextmanager
    def workers(self, function: Callable[[T], R], *, name: Callable[[T], str] = str) -> Iterator[Workers[T, R]]:
        def run(items: Sequence[T]) -> Iterator[tuple[T, R]]:
            together, single = [item for item in items if not self.alone(item)], [item for item in items if self.alone(item)]
            if min(pool.n, len(together)) < 2 or torch.cuda.is_initialized() or "fork" not in multiprocessing.get_all_start_methods():
                together, single = [], together + single
            yield from pool.run(together)
            yield from ((item, function(item)) for item in single)

        pool = ProcessPool(function, n=torch.get_num_threads(), start_method="fork", threads=1, name=name)
        with pool:
            yield run


def parse_executor(text: str) -> Executor:
    """The executor that a text names: "serial", "processes:N", "ray:auto" for the Ray cluster of this machine, or "ray://HOST:PORT".

    Raises:
        InputError: any other text, or a cluster that cannot be reached.

    Example:
        >>> parse_executor("processes:4")
        Processes(n=4)
    """
    if text == "serial":
        return Serial()
    if found := re.fullmatch(r"processes:(\d{1,4})", text, re.ASCII):
        return Processes(int(found[1]))
    if (on_ray := parse_ray(text)) is not None:
        return on_ray
    raise InputError(f"executor {text!r} is unknown; use {NAMES}")
