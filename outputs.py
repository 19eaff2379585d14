"""Files and folders that a user names to be written: nothing of his is lost, and what was there stays until what is new is whole."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from .errors import InputError
from .storage import flush_folder, unwritable

FORMULAS = tuple("=+-@\t\r")  # that a cell of a spreadsheet begins with


def csv_bytes(table: Any) -> bytes:
    """A frame of pandas as CSV. Texts that spreadsheets would take for formulas have an apostrophe before them."""
    texts = table.select_dtypes(exclude="number").columns
    harmless = {
        name: table[name].map(lambda value: f"'{value}" if isinstance(value, str) and value[:1] in FORMULAS else value) for name in texts
    }
    data: bytes = table.assign(**harmless).to_csv(index=False).encode()
    return data


def check_out(argument: str, path: Path, mark: str) -> None:
    """Before any work: raise InputError where a file cannot be written to `path`, or one lies there that sedaq did not write.

    Args:
        mark: text near the beginning of the files that it may replace.
    """
    try:
        if path.is_dir():
            raise InputError(f"`{argument}` {path}: is a folder; name a file")
        if path.exists():
            with open(path, "rb") as file:
                if mark.encode() not in file.read(1 << 16):
                    raise InputError(f"`{argument}` {path}: exists, and sedaq did not write it; choose another name, or move it away")
        parent = next(folder for folder in path.resolve().parents if folder.exists())
        temporary = parent / f".sedaq-{uuid.uuid4().hex[:8]}"
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise unwritable(path, error) from error


def write_folder(out: Path, fill: Callable[[Path], None], *, before_replacing: Callable[[], None] = lambda: None) -> None:
    """Let `fill` write a folder beside `out`, flush it to disk and rename it to `out`. Of several processes, one at a time does so.

    An earlier `out` is deleted only when the new one is in its place. What a process that was killed left behind is put back or cleared away.

    Args:
        before_replacing: called when the new folder is whole; where it raises, the earlier one stays.
    """
    new, old = (out.with_name(f".{out.name}.{word}") for word in ("new", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(f".{out.name}.lock")) as lock:
            try:
                _tidy(out, new, old)
                new.mkdir()
                fill(new)
                _flush(new)
                before_replacing()
                _swap(new, out, old)
            finally:
                shutil.rmtree(new, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error


def _tidy(out: Path, new: Path, old: Path) -> None:
    """After a process that was killed: the earlier folder is back under its name, and nothing else is left."""
    if old.exists() and not out.exists():
        old.rename(out)
    for left in (new, old):
        if left.exists():
            shutil.rmtree(left)


def _flush(folder: Path) -> None:
    """Every file and every name in a folder outlives a power cut."""
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        elif path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    flush_folder(folder)


def _swap(new: Path, out: Path, old: Path) -> None:
    """Rename `new` to `out`; where that fails, an earlier `out` is back under its name."""
    try:
        if out.exists():
            out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    flush_folder(out.parent)
    if old.exists():
        shutil.rmtree(old)


def refuse_links(folder: Path) -> None:
    """Raise InputError where a folder that is written into holds a link that leads out of it: somebody else's folder could have any file written over."""
    try:
        inner = [Path(entry) for place in (folder, *(path for path in folder.iterdir() if path.is_dir())) for entry in os.scandir(place)]
        outside = next((path for path in inner if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())), None)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check the path") from error
    if outside is not None:
        raise InputError(f"{outside}: is a link that leads out of {folder}; put what it leads to in its place")
