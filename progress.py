"""Progress of long work as one stream of records, whoever shows them.

Library code wraps its loops in `track`; a command line shows the records with `shown`. Without a listener nothing is printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """How far one piece of work is."""

    description: str
    done: float
    total: float
    elapsed: float  # seconds
    remaining: float | None  # seconds, None until it can be told


_listeners: list[Callable[[Record], None]] = []


def report(record: Record) -> None:
    for listener in _listeners:
        listener(record)


def track(
    items: Iterable[T], description: str, total: float | None = None, *, done: float = 0, cost: Callable[[T], float] = lambda _: 1
) -> Iterator[T]:
    """Yield `items`, sending a record before the first and after each.

    Args:
        total: sum of all costs, those already done included; len(items) + done when None.
        done: cost of what an earlier run has finished.
        cost: weight of one item, for items of unequal length.
    """
    if total is None:
        items = list(items)
        total = done + sum(cost(item) for item in items)
    start, first = time.monotonic(), done
    report(Record(description, done, total, 0.0, None))
    for item in items:
        yield item
        done += cost(item)
        elapsed = time.monotonic() - start
        report(Record(description, done, total, elapsed, elapsed * (total - done) / (done - first) if done > first else None))


@contextmanager
def listening(listener: Callable[[Record], None]) -> Iterator[None]:
    """Send records to `listener` while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def stop_listening() -> None:
    """Send no more records: a forked process inherits listeners that are its parent's."""
    _listeners.clear()


SECONDS_BETWEEN_LINES = 30


@contextmanager
def shown() -> Iterator[None]:
    """Show records on stderr while the block runs: as bars with time left on a terminal, elsewhere as lines."""
    with _bars() if sys.stderr.isatty() else listening(_Lines()):
        yield


class _Lines:
    """A line at most every SECONDS_BETWEEN_LINES: how much is done, time taken and time left. Quick work says nothing."""

    def __init__(self) -> None:
        self.told = time.monotonic()

    def __call__(self, record: Record) -> None:
        now = time.monotonic()
        if now - self.told < SECONDS_BETWEEN_LINES:
            return
        self.told = now
        left = "" if record.remaining is None else f", {_clock(record.remaining)} left"
        sys.stderr.write(f"{record.description}: {record.done:,.0f} of {record.total:,.0f}, {_clock(record.elapsed)}{left}\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def _bars() -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def listener(record: Record) -> None:
        if not bars.live.is_started:  # not before: an error found before any work is the only line on stderr
            bars.start()
        if record.done == 0 or record.description not in tasks:
            if record.description in tasks:
                bars.remove_task(tasks[record.description])
            tasks[record.description] = bars.add_task(record.description, total=record.total, completed=int(record.done))
        bars.update(tasks[record.description], completed=record.done, total=record.total)

    try:
        with listening(listener):
            yield
    finally:
        if bars.live.is_started:
            bars.stop()
