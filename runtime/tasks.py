"""Tasks and their artifacts: what is expensive is made once, and never lost once it is finished.

A task is a pure function of a content key. Its result is an artifact: a file whose name holds the key and whose content carries a sha256.
Whoever needs the result asks the task for it. An artifact that is there is verified and used; one that is missing or damaged is made.
The process that made it commits it: it writes a temporary file, flushes file and folder, and renames (storage.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from filelock import FileLock, Timeout

from ..errors import DamagedError, InputError
from ..records import REMADE
from ..remote import is_there, pull
from ..storage import clear_half_written, load_tensors, read_json, save_tensors, unwritable, write_json
from .owner import artifact

T = TypeVar("T")
log = logging.getLogger("sedaq")


@dataclass(frozen=True)
class Task(Generic[T]):
    """A pure function whose result is the artifact at `path`.

    Args:
        name: what messages call it, such as "encoding of blocks.0 in 2x8g8".
        path: its name holds the key of all that the result depends on.
        make: computes the result, which is never None.
        write: commits the result to a path, whole or not at all.
        read: reads it back. Raises DamagedError for a file that is not what was written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> square = json_task("square of 7", folder / "square.7.json", "square", lambda: {"square": 49})
        >>> square.is_done, square.result(), square.is_done
        (False, {'square': 49}, True)
    """

    name: str
    path: Path
    make: Callable[[], T]
    write: Callable[[Path, T], None]
    read: Callable[[Path], T]

    @property
    def is_done(self) -> bool:
        """Whether the artifact is there. It is verified when it is read."""
        return is_there(self.path)

    def result(self) -> T:
        """The artifact's content, made now where it is missing or damaged. Of several processes that ask at once, one makes it."""
        found = self._stored()
        if found is None:
            with locked(self.path):
                found = self._stored()  # another process may have made it meanwhile
                if found is None:
                    clear_half_written(self.path)
                    found = self.make()
                    self.write(self.path, found)
        return found

    def _stored(self) -> T | None:
        if not pull(self.path):
            return None
        try:
            return self.read(self.path)
        except DamagedError as error:
            log.warning("%s: damaged; the %s is made again", self.path, self.name)
            log.info("%s", error)
            return None


def json_task(
    name: str,
    path: Path,
    kind: str,
    make: Callable[[], dict[str, Any]],
    *,
    model: str | None = None,
    check: Callable[[dict[str, Any]], None] = lambda content: None,
) -> Task[dict[str, Any]]:
    """A task whose result is a JSON object; see `Task` for the arguments, and storage.read_json for `kind` and `model`.

    Args:
        check: what else is asked of a stored object. Raises InputError for one that nothing can be done with.
    """

    def read(path: Path) -> dict[str, Any]:
        content = read_json(path, kind, model=model, owner=artifact(path))
        content.pop("artifact", None)
        with as_damage(path):
            check(content)
        return content

    return Task(name, path, make, lambda path, content: write_json(path, kind, {**content, **artifact(path)}), read)


def tensor_task(name: str, path: Path, kind: str, make: Callable[[], torch.Tensor]) -> Task[torch.Tensor]:
    """A task whose result is one tensor; see `Task` for the arguments, and storage.save_tensors for `kind`."""

    def read(path: Path) -> torch.Tensor:
        tensors, _ = load_tensors(path, kind, owner=artifact(path))
        with as_damage(path):
            return tensors[kind]

    return Task(name, path, make, lambda path, tensor: save_tensors(path, kind, {kind: tensor}, artifact(path)), read)


@contextmanager
def as_damage(path: Path) -> Iterator[None]:
    """Run the block; a stored artifact that it cannot make sense of is damaged."""
    try:
        yield
    except DamagedError:
        raise
    except (InputError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise DamagedError(f"{path}: {what}; {REMADE}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that stands for `path` while the block runs; other processes wait for it."""
    with claimed(path, wait=True):
        yield


@contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock that stands for `path` while the block runs. Yields False where another process holds it, and `wait` is false."""
    lock = FileLock(lock_path(path))
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        discard(lock)
        lock.release()


def lock_path(path: Path) -> Path:
    """The file that is locked for `path`; its folder is made. Raises InputError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = path.with_name(f".{path.name}.lock")
        found.touch()
    except OSError as error:
        raise unwritable(path, error) from error
    return found


def discard(lock: FileLock) -> None:
    """Remove the file of a lock that is held: filelock gives nobody a lock whose file is gone, so those who wait take a new one."""
    Path(lock.lock_file).unlink(missing_ok=True)
