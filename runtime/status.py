"""What the commands at work in a run are at, for others to see.

Each has a file .status.HOST-PID.json in the run's folder, written anew as it gets on and removed at its end. It holds that file's lock, by which
a command that was killed is told from one that is slow, from any machine that shares the folder.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ..errors import InputError
from ..progress import Record, listening
from ..storage import read_json, write_json
from .tasks import claimed

PREFIX = ".status."
SECONDS_BETWEEN = 2.0  # that a file is written anew
N_WARNINGS = 5  # the last ones, which are kept
P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("sedaq")
_at_work: set[Path] = set()  # folders in which this process tells what it is at


@dataclass(frozen=True)
class Stage:
    """One piece of work of a command."""

    description: str
    done: float
    total: float
    elapsed: float  # seconds
    remaining: float | None  # seconds, None until it can be told


@dataclass(frozen=True)
class Command:
    """What one command told last. Times are in seconds since 1970."""

    verb: str
    host: str
    pid: int
    began: float
    told: float
    workers: int  # processes beside its own, on its machine
    stages: tuple[Stage, ...]  # in the order in which they began, the last one is at work
    warnings: tuple[str, ...]  # the last ones, such as workers that died
    is_alive: bool = True

    def to_dict(self) -> dict[str, Any]:
        """What `sedaq watch` prints as JSON."""
        return asdict(self)


class HasFolder(Protocol):
    @property
    def folder(self) -> Path: ...


R = TypeVar("R", bound=HasFolder)


def telling(verb: str) -> Callable[[Callable[Concatenate[R, P], T]], Callable[Concatenate[R, P], T]]:
    """Decorates a function of a run, which then tells in the run's folder what it is at. What it calls tells nothing of its own."""

    def decorate(function: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
        @wraps(function)
        def _told(run: R, *args: P.args, **kwargs: P.kwargs) -> T:
            with telling_in(run.folder, verb):
                return function(run, *args, **kwargs)

        return _told

    return decorate


@contextmanager
def telling_in(folder: Path, verb: str) -> Iterator[None]:
    """Tell in a run's folder what this process is at while the block runs."""
    if folder in _at_work:
        yield
        return
    forget_killed(folder)
    teller = _Teller(folder, verb)
    _at_work.add(folder)
    log.addHandler(teller)
    try:
        with teller.stack, listening(teller.hear):
            yield
    finally:
        log.removeHandler(teller)
        _at_work.discard(folder)


class _Teller(logging.Handler):
    """Listens to progress and warnings, and writes what it heard once the run is on disk."""

    def __init__(self, folder: Path, verb: str) -> None:
        super().__init__(logging.WARNING)
        self.stack = ExitStack()  # holds the file's lock, and removes the file
        self._folder, self._verb, self._began = folder, verb, time.time()
        self._told = -math.inf  # by a clock that nobody sets
        self._stages: dict[str, Stage] = {}
        self._warnings: deque[str] = deque(maxlen=N_WARNINGS)
        self._path = folder / f"{PREFIX}{socket.gethostname()}-{os.getpid()}.json"
        self._is_first = True

    def emit(self, record: logging.LogRecord) -> None:
        self._warnings.append(record.getMessage())

    def hear(self, record: Record) -> None:
        """Know how far a piece of work is; tell it, if nothing was told for a while."""
        begins = record.description not in self._stages
        self._stages[record.description] = Stage(**vars(record))
        if begins or time.monotonic() - self._told > SECONDS_BETWEEN:
            self._tell()

    def _tell(self) -> None:
        if not (self._folder / "run.json").exists():
            return
        try:
            if self._is_first:
                self.stack.enter_context(claimed(self._path, wait=True))
                self.stack.callback(self._path.unlink, missing_ok=True)
                self._is_first = False
            self._told = time.monotonic()
            stages, workers = tuple(self._stages.values()), len(multiprocessing.active_children())
            command = Command(
                self._verb, socket.gethostname(), os.getpid(), self._began, time.time(), workers, stages, tuple(self._warnings)
            )
            write_json(self._path, "status", {name: value for name, value in command.to_dict().items() if name != "is_alive"})
        except InputError as error:  # the work itself will say so if the disk is full
            log.debug("%s", error)


def commands_in(folder: Path) -> list[Command]:
    """The commands that are at work in a run, and those that were killed, the first to begin first."""
    found = []
    for path in folder.glob(f"{PREFIX}*.json"):
        try:
            content = read_json(path, "status")
            stages = tuple(Stage(**stage) for stage in content.pop("stages"))
            warnings = tuple(content.pop("warnings"))
            with claimed(path, wait=False) as is_free:
                found.append(Command(**content, stages=stages, warnings=warnings, is_alive=not is_free))
        except (InputError, TypeError, KeyError):  # it ended meanwhile, or is none of ours
            continue
    return sorted(found, key=lambda command: command.began)


def forget_killed(folder: Path) -> None:
    """Remove what killed commands left."""
    for path in folder.glob(f"{PREFIX}*.json"):
        with claimed(path, wait=False) as is_free:
            if is_free:
                path.unlink(missing_ok=True)
