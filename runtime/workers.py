"""Pools of workers that take one item at a time.

Unlike concurrent.futures.ProcessPoolExecutor, a worker that dies takes no other with it, and it is known which item it was at. Pools differ in
what their workers are: processes here, actors of a cluster in ray_executor.py.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pickle import PicklingError
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import torch

from .. import progress
from ..errors import SedaqError, WorkerError

log = logging.getLogger("sedaq")
MAX_TRIES = 3  # of an item whose workers die
T = TypeVar("T")
R = TypeVar("R")


class DiedError(Exception):
    """A worker is gone; the text says how it ended."""


class Worker(Protocol):
    """What answers one item at a time."""

    @property
    def handle(self) -> Any:
        """What its pool waits on for the answer."""

    def start(self, item: Any) -> None:
        """Send an item."""

    def answer(self) -> Any:
        """The result of the item that was started. Raises what the function raised, and DiedError for a dead worker."""

    def finish(self) -> bool:
        """Wait for what the worker is at, and forget the answer. Returns whether it lives."""

    def stop(self, *, at_once: bool) -> None:
        """Ask for its end, after the item that it is at or at once."""

    def join(self) -> None:
        """Wait for its end."""


class Pool(ABC, Generic[T, R]):
    """Workers that apply one function to items; they start when they are first needed. A context manager.

    Args:
        name: what messages call an item.
    """

    def __init__(self, name: Callable[[T], str]) -> None:
        self._name = name
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []

    @abstractmethod
    def _take(self, n_waiting: int) -> Worker | None:
        """A worker for the next of so many items that wait; None while all are at work."""

    @abstractmethod
    def _wait(self, busy: Sequence[Any]) -> Sequence[Any]:
        """The handles among `busy` whose answers are there; waits for one, or for a worker to be taken."""

    def run(self, items: Sequence[T]) -> Iterator[tuple[T, R]]:
        """(item, result) in the order of completion. An item whose worker dies is tried again by a new one; after `MAX_TRIES` it is set aside.
        Where workers died of other items, too, which went on, it may not be to blame, and has as many tries again when all others are done.

        Raises what the function raises, and, when all others are done, WorkerError for the items that were set aside.
        """
        waiting = deque(enumerate(items))
        tries: Counter[int] = Counter()
        endings: dict[int, str] = {}
        self._workers = [worker for worker in self._workers if worker.finish()]  # what an earlier caller did not wait for
        self._idle = list(self._workers)
        busy: dict[Any, tuple[Worker, int]] = {}
        limit = MAX_TRIES
        while waiting or busy:
            while waiting and (worker := self._take(len(waiting))) is not None:
                index, item = waiting.popleft()
                worker.start(item)
                busy[worker.handle] = worker, index
            for handle in self._wait(list(busy)):
                worker, index = busy.pop(handle)
                try:
                    result = worker.answer()
                except DiedError as error:
                    self._workers.remove(worker)
                    tries[index] += 1
                    endings[index] = str(error)
                    if tries[index] < limit:
                        log.warning("%s: its worker process %s; it is tried again", self._name(items[index]), error)
                        waiting.append((index, items[index]))
                    continue
                self._idle.append(worker)
                yield items[index], result
            dead = [index for index in tries if tries[index] >= limit]
            if not (waiting or busy) and limit == MAX_TRIES and 0 < len(dead) < len(tries):
                limit = 2 * MAX_TRIES
                waiting.extend((index, items[index]) for index in dead)
        dead = [index for index in tries if tries[index] >= limit]
        if dead:
            others = f" ({len(dead)} items ended so)" if len(dead) > 1 else ""
            raise WorkerError(
                f"{self._name(items[dead[0]])}: its worker process {endings[dead[0]]}, {limit} times{others}; all else is done and kept, "
                "so run the same again, with fewer workers if memory was short"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.stop(at_once=kind is not None and issubclass(kind, KeyboardInterrupt))
        for worker in self._workers:
            worker.join()
        self._workers.clear()


class ProcessPool(Pool[T, R]):
    """At most `n` processes.

    Args:
        start_method: "spawn", for which the function is pickled, or "fork".
        threads: that torch may use in each process.
    """

    def __init__(self, function: Callable[[T], R], *, n: int, start_method: str, threads: int, name: Callable[[T], str]) -> None:
        super().__init__(name)
        self.n, self._function, self._start_method, self._threads = n, function, start_method, threads

    def _take(self, n_waiting: int) -> Worker | None:
        if self._idle:
            return self._idle.pop()
        if len(self._workers) == self.n:
            return None
        pipes = [worker.handle for worker in self._workers]
        self._workers.append(_Process(self._function, self._start_method, self._threads, pipes))
        return self._workers[-1]

    def _wait(self, busy: Sequence[Any]) -> Sequence[Any]:
        return wait(busy)


class _Process:
    """One process and the pipe to it. `pipes`: those to the workers that were started before."""

    def __init__(self, function: Callable[[Any], Any], start_method: str, threads: int, pipes: Sequence[Connection]) -> None:
        context: Any = multiprocessing.get_context(start_method)
        self.handle, theirs = context.Pipe()
        forked = start_method == "fork"
        inherited = [*pipes, self.handle] if forked else []
        self._process = context.Process(target=_serve, args=(theirs, threads, function if forked else None, inherited), daemon=True)
        self._process.start()
        theirs.close()
        self._is_busy = False
        if not forked:
            self._send(function)

    def _send(self, value: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: reading its answer tells
            self.handle.send(value)

    def start(self, item: Any) -> None:
        self._send(item)
        self._is_busy = True

    def answer(self) -> Any:
        try:
            done, result = self.handle.recv()
        except (EOFError, ConnectionResetError) as error:
            raise DiedError(self._ending()) from error
        finally:
            self._is_busy = False
        if not done:
            raise result
        return result

    def finish(self) -> bool:
        try:
            if self._is_busy:
                self.handle.recv()
                self._is_busy = False
        except (EOFError, ConnectionResetError):
            return False
        return True

    def stop(self, *, at_once: bool) -> None:
        self._send(None)
        if at_once:
            self._process.terminate()

    def join(self) -> None:
        self._process.join()

    def _ending(self) -> str:
        self._process.join()
        code = self._process.exitcode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _end_with_parent() -> None:
    """End this process when its parent is gone, whatever it is at: nobody would take the answer."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _serve(pipe: Connection, threads: int, function: Callable[[Any], Any] | None, inherited: Sequence[Connection]) -> None:
    """What a worker does: answer items until None comes, or until its parent is gone, which ends the pipe."""
    for parents in inherited:  # a pipe ends when nobody else holds the parent's end
        parents.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent says what becomes of them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    progress.stop_listening()
    torch.set_num_threads(threads)
    try:
        function = function or opened(pipe.recv)
        while (item := pipe.recv()) is not None:
            _reply(pipe, answer_of(function, item))
    except (KeyboardInterrupt, EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent was stopped, too


def opened(receive: Callable[[], Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """The function that was sent; one that raises where it could not be opened here, so that the caller is told."""
    try:
        return receive()
    except Exception as error:
        failure = error

    def fail(_: Any) -> None:
        raise failure

    return fail


def answer_of(function: Callable[[Any], Any], item: Any) -> tuple[bool, Any]:
    """(True, result), or (False, what the function raised)."""
    try:
        return True, function(item)
    except Exception as error:
        return False, error


def unsendable(answer: Any, error: Exception) -> SedaqError:
    """What the caller gets for an answer that cannot be pickled."""
    return SedaqError(f"a worker's answer {answer!r} cannot be sent ({error})")


def _reply(pipe: Connection, answer: tuple[bool, Any]) -> None:
    try:
        pipe.send(answer)
    except (TypeError, AttributeError, ValueError, PicklingError) as error:  # what cannot be pickled
        pipe.send((False, unsendable(answer[1], error)))
