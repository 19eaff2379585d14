"""A pool of worker processes that take one item at a time.

Unlike concurrent.futures.ProcessPoolExecutor, a worker that dies takes no other with it, and it is known which item it was at.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pickle import PicklingError
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from .. import progress
from ..errors import SedaqError, WorkerError

log = logging.getLogger("sedaq")
MAX_TRIES = 3  # of an item whose workers die
T = TypeVar("T")
R = TypeVar("R")


class Pool(Generic[T, R]):
    """At most `n` processes that apply `function` to items; they start when they are first needed. A context manager.

    Args:
        start_method: "spawn", for which the function is pickled, or "fork".
        threads: that torch may use in each process.
        name: what messages call an item.
    """

    def __init__(self, function: Callable[[T], R], *, n: int, start_method: str, threads: int, name: Callable[[T], str]) -> None:
        self.n, self._function, self._start_method, self._threads, self._name = n, function, start_method, threads, name
        self._workers: list[_Worker[T, R]] = []

    def run(self, items: Sequence[T]) -> Iterator[tuple[T, R]]:
        """(item, result) in the order of completion. An item whose worker dies is tried again by a new one; after `MAX_TRIES` it is set aside.

        Raises what the function raises, and, when all others are done, WorkerError for the items that were set aside.
        """
        waiting = deque(enumerate(items))
        tries: Counter[int] = Counter()
        endings: dict[int, str] = {}
        self._workers = [worker for worker in self._workers if worker.finish()]  # what an earlier caller did not wait for
        idle = list(self._workers)
        busy: dict[Any, tuple[_Worker[T, R], int]] = {}
        while waiting or busy:
            while waiting and (idle or len(self._workers) < self.n):
                worker = idle.pop() if idle else self._started()
                index, item = waiting.popleft()
                worker.start(item)
                busy[worker.pipe] = worker, index
            for pipe in wait(list(busy)):
                worker, index = busy.pop(pipe)
                try:
                    result = worker.answer()
                except _DiedError:
                    self._workers.remove(worker)
                    tries[index] += 1
                    endings[index] = worker.ending()
                    if tries[index] < MAX_TRIES:
                        log.warning("%s: its worker process %s; it is tried again", self._name(items[index]), endings[index])
                        waiting.append((index, items[index]))
                    continue
                idle.append(worker)
                yield items[index], result
        dead = [index for index in endings if tries[index] == MAX_TRIES]
        if dead:
            others = f" ({len(dead)} items ended so)" if len(dead) > 1 else ""
            raise WorkerError(
                f"{self._name(items[dead[0]])}: its worker process {endings[dead[0]]}, {MAX_TRIES} times{others}; all else is done and kept, "
                "so run the same again, with fewer workers if memory was short"
            )

    def _started(self) -> _Worker[T, R]:
        pipes = [worker.pipe for worker in self._workers]
        self._workers.append(_Worker(self._function, self._start_method, self._threads, pipes))
        return self._workers[-1]

    def __enter__(self) -> Pool[T, R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.stop(at_once=kind is not None and issubclass(kind, KeyboardInterrupt))
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()


class _DiedError(Exception):
    """A worker process is gone."""


class _Worker(Generic[T, R]):
    """One process and the pipe to it. `pipes`: those to the workers that were started before."""

    def __init__(self, function: Callable[[T], R], start_method: str, threads: int, pipes: Sequence[Connection]) -> None:
        context: Any = multiprocessing.get_context(start_method)
        self.pipe, theirs = context.Pipe()
        forked = start_method == "fork"
        inherited = [*pipes, self.pipe] if forked else []
        self.process = context.Process(target=_serve, args=(theirs, threads, function if forked else None, inherited), daemon=True)
        self.process.start()
        theirs.close()
        self.is_busy = False
        if not forked:
            self._send(function)

    def _send(self, value: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: reading its answer tells
            self.pipe.send(value)

    def start(self, item: T) -> None:
        self._send(item)
        self.is_busy = True

    def answer(self) -> R:
        """The result of the item that was started. Raises what the function raised, and _DiedError for a dead process."""
        try:
            done, result = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise _DiedError from error
        finally:
            self.is_busy = False
        if not done:
            raise result
        found: R = result
        return found

    def finish(self) -> bool:
        """Wait for what the worker is at, and forget the answer. Returns whether the process lives."""
        try:
            if self.is_busy:
                self.pipe.recv()
                self.is_busy = False
        except (EOFError, ConnectionResetError):
            return False
        return True

    def stop(self, *, at_once: bool) -> None:
        self._send(None)
        if at_once:
            self.process.terminate()

    def ending(self) -> str:
        self.process.join()
        code = self.process.exitcode
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
        function = function or _received(pipe)
        while (item := pipe.recv()) is not None:
            try:
                answer = True, function(item)
            except Exception as error:
                answer = False, error
            _reply(pipe, answer)
    except (KeyboardInterrupt, EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent was stopped, too


def _received(pipe: Connection) -> Callable[[Any], Any]:
    """The function that the parent sent; one that raises where it could not be opened here, so that the parent is told."""
    try:
        function: Callable[[Any], Any] = pipe.recv()
        return function
    except Exception as error:
        failure = error

    def fail(_: Any) -> None:
        raise failure

    return fail


def _reply(pipe: Connection, answer: tuple[bool, Any]) -> None:
    try:
        pipe.send(answer)
    except (TypeError, AttributeError, ValueError, PicklingError) as error:  # what cannot be pickled
        pipe.send((False, SedaqError(f"a worker's answer {answer[1]!r} cannot be sent ({error})")))
