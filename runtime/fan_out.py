"""Many tasks of one object at once: by forks of this process, or by the workers of an executor, which open the object again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from .executors import Executor, Forked, Serial, Workers
from .tasks import Task

TaskOf = Callable[..., Task[Any]]  # of the object and an item, the task that makes the item's artifact
Item = tuple[Any, ...]


class FanOut:
    """What has tasks and makes many of them at once. For other executors than "serial" it is pickled, by what it is opened from."""

    _workers: Workers[tuple[TaskOf, Item], None] | None = None

    @contextmanager
    def workers_of(self, executor: Executor) -> Iterator[None]:
        """Let `make` use an executor's workers while the block runs. Serial has none of its own: forks of this process share its memory."""
        if executor == Serial():
            yield
            return
        with executor.workers(partial(_make, self), name=self._name) as self._workers:
            try:
                yield
            finally:
                self._workers = None

    def make(self, task_of: TaskOf, items: Sequence[Item], *, alone: Callable[..., bool] = lambda *item: False) -> Iterator[Item]:
        """Make the artifacts of `task_of(self, *item)`. Yields the items as they are finished.

        Args:
            task_of: a function of a module or a class, which pickles by its name.
            alone: which items this process makes with all its threads, where forks make the others.
        """
        wanted = [(task_of, item) for item in items]
        if self._workers is not None:
            yield from (item for (_, item), _ in self._workers(wanted))
            return
        with Forked(alone=lambda one: alone(*one[1])).workers(partial(_make, self), name=self._name) as run:
            yield from (item for (_, item), _ in run(wanted))

    def _name(self, wanted: tuple[TaskOf, Item]) -> str:
        task_of, item = wanted
        return task_of(self, *item).name


def _make(source: Any, wanted: tuple[TaskOf, Item]) -> None:
    task_of, item = wanted
    task_of(source, *item).result()
