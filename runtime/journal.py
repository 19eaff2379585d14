"""Append-only journals of records that several processes may write at once.

A journal NAME.jsonl has one file, a shard, for each writer: NAME.jsonl, NAME.1.jsonl, NAME.2.jsonl and so on. A writer holds its shard's lock
while it writes, and takes the first shard that nobody holds. Readers see all shards as one.

In the mirror of a URL (remote.py) each record is a file of its own, NAME.jsonl.d/KEY.json, for nobody can append to an object. The first shard is kept beside them for
the order of records alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..remote import pull_all, url_of
from ..storage import append_record, read_json, write_json
from .owner import owner, read_own_records, read_own_records_from
from .tasks import discard, lock_path

Record = dict[str, Any]


class Journal:
    """Records of one kind, each with a unique field `key`.

    Args:
        path: the first shard, which ends in .jsonl.
        kind: of its records, as storage.append_record takes it.

    Example:
        >>> import tempfile
        >>> journal = Journal(Path(tempfile.mkdtemp()) / "squares.jsonl", "square")
        >>> with journal.writing() as write:
        ...     write({"key": "7", "square": 49})
        >>> journal.read()
        [{'key': '7', 'square': 49}]
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self._ends: dict[Path, int] = {}  # up to where `unread` has read each shard
        self._read: set[str] = set()  # keys of what `unread` has read
        self.written: set[str] = set()  # keys in the first shard, as far as it was read, and of what this process wrote

    def shard(self, number: int) -> Path:
        """The file of a writer; that of number 0 is the journal's own path."""
        return self.path.with_suffix(f".{number}.jsonl") if number else self.path

    def shards(self) -> list[Path]:
        """The files that are there, the first shard first."""
        others = (path for path in self.path.parent.glob(f"{self.path.stem}.*.jsonl") if path.suffixes[-2][1:].isdecimal())
        return [path for path in (self.path, *sorted(others, key=lambda path: int(path.suffixes[-2][1:]))) if path.exists()]

    def read(self) -> list[Record]:
        """All records, shard after shard, each key once: the last record of the first shard that has it. Raises DamagedError for a damaged one."""
        found: dict[str, Record] = {}
        for shard in self.shards():
            records = {record["key"]: record for record in read_own_records(shard, self.kind)}
            found |= {key: record for key, record in records.items() if key not in found}
        return [*found.values(), *self._of_others(found)]

    def _of_others(self, known: Container[str]) -> Iterator[Record]:
        """What other machines wrote and no shard has."""
        pull_all(self._record("").parent)
        own = owner(self.path.parent)
        for path in sorted(self._record("").parent.glob("*.json")):
            if path.stem not in known:
                record = read_json(path, self.kind, owner=own)
                yield {name: value for name, value in record.items() if name not in own}

    def _record(self, key: str) -> Path:
        return self.path.with_name(f"{self.path.name}.d") / f"{key}.json"

    def unread(self) -> list[Record]:
        """Records that were not there when this was last called, of all shards."""
        found: list[Record] = []
        for shard in self.shards():
            records, self._ends[shard] = read_own_records_from(shard, self.kind, self._ends.get(shard, 0))
            found += records
            if shard == self.path:
                self.written |= {record["key"] for record in records}
        self._read |= {record["key"] for record in found}
        others = list(self._of_others(self._read))
        self._read |= {record["key"] for record in others}
        return found + others

    @contextmanager
    def writing(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Take a shard while the block runs. Yields the function that appends a record to it and flushes it to disk.

        Whoever asks again within the same process gets the shard that the process holds.
        """
        for number in itertools.count():
            shard = self.shard(number)
            lock = FileLock(lock_path(shard), is_singleton=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            try:
                yield partial(self._append, shard)
            finally:
                if lock.lock_counter == 1:
                    discard(lock)
                lock.release()
            return

    def _append(self, shard: Path, record: Mapping[str, Any]) -> None:
        own = {**record, **owner(self.path.parent)}
        if url_of(self.path) is not None:
            write_json(self._record(str(record["key"])), self.kind, own)
        if url_of(self.path) is None or shard == self.path:
            append_record(shard, self.kind, own)
            self.written.add(record["key"])

    def drop_merged_shards(self) -> None:
        """Remove the shards that nobody writes and whose records are all in the first one."""
        merged = {record["key"] for record in read_own_records(self.path, self.kind)}
        for shard in self.shards()[1:]:
            lock = FileLock(lock_path(shard))
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            with lock:
                if all(record["key"] in merged for record in read_own_records(shard, self.kind)):
                    shard.unlink()
                discard(lock)
            lock.release()
