"""Functions that spawned workers import by name."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sedaq.errors import InputError


def call(function: Callable[[], Any]) -> Any:
    return function()


def describe(item: int) -> dict[str, int]:
    return {"square": item**2, "process": os.getpid(), "threads": torch.get_num_threads()}


def describe_slowly(seconds: float, item: int) -> dict[str, int]:
    time.sleep(seconds)
    return describe(item)


def fail_at_one(folder: Path, item: int) -> int:
    if item == 1:
        raise InputError("layer x: cannot be")
    (folder / str(item)).touch()
    return item


def die_at_one(folder: Path, item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    (folder / str(item)).touch()
    return item


def die_so_often(folder: Path, deaths: dict[int, int], item: int) -> int:
    """Its worker dies the first deaths[item] times."""
    tried = len(list(folder.glob(f"{item} tried *")))
    (folder / f"{item} tried {tried}").touch()
    if tried < deaths.get(item, 0):
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def end_of_file(item: int) -> int:
    raise EOFError("no more noise")


class OpensHereOnly:
    def __init__(self, home: int) -> None:
        if os.getpid() != home:
            raise InputError("this function opens nowhere else")
        self.home = home

    def __reduce__(self) -> tuple[Callable[[int], OpensHereOnly], tuple[int]]:
        return OpensHereOnly, (self.home,)

    def __call__(self, item: int) -> int:
        return item


def die_the_first_time(folder: Path, item: int) -> int:
    if not (folder / f"tried {item}").exists():
        (folder / f"tried {item}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


class OpensAndCounts:
    """Leaves a file in `folder` wherever it is opened; answers items with themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], OpensAndCounts], tuple[Path]]:
        return _open_and_count, (self.folder,)

    def __call__(self, item: int) -> int:
        return item


def _open_and_count(folder: Path) -> OpensAndCounts:
    (folder / str(os.getpid())).touch()
    return OpensAndCounts(folder)


def slow_square(item: int, seconds: float = 0.05) -> int:
    time.sleep(seconds)
    return item**2


def unsendable(item: int) -> Callable[[], int]:
    return threading.Lock()  # type: ignore[return-value]
