"""Journals: one file a writer, merged at reading."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from sedaq.errors import InputError
from sedaq.runtime.journal import Journal
from sedaq.storage import append_record, read_records


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "run" / "probes.jsonl", "event")


def keys(journal: Journal) -> list[str]:
    return [record["key"] for record in journal.read()]


def write(journal: Journal, *keys: str) -> None:
    with journal.writing() as append:
        for key in keys:
            append({"key": key})


def test_one_writer_has_one_file_that_grows(journal: Journal) -> None:
    assert journal.read() == [] and journal.shards() == []
    write(journal, "a", "b")
    before = journal.path.read_bytes()
    write(journal, "c")
    assert journal.path.read_bytes().startswith(before)
    assert keys(journal) == ["a", "b", "c"] and [path.name for path in journal.path.parent.iterdir()] == ["probes.jsonl"]


def test_who_asks_again_in_the_same_process_writes_the_same_file(journal: Journal) -> None:
    with journal.writing() as append, Journal(journal.path, "event").writing() as other:
        append({"key": "a"})
        other({"key": "b"})
    write(journal, "c")
    assert keys(journal) == ["a", "b", "c"] and journal.shards() == [journal.path]


def _write_when_told(journal: Journal, told: Any, wrote: Any, key: str) -> None:
    with journal.writing() as append:
        append({"key": key})
        wrote.set()
        assert told.wait(20)


def test_writers_at_the_same_time_have_files_of_their_own(journal: Journal) -> None:
    context = multiprocessing.get_context("fork")
    told = context.Event()
    processes = []
    for key in ("a", "b", "c"):
        wrote = context.Event()
        processes.append(context.Process(target=_write_when_told, args=(journal, told, wrote, key)))
        processes[-1].start()
        assert wrote.wait(60)
    assert [path.name for path in journal.shards()] == ["probes.jsonl", "probes.1.jsonl", "probes.2.jsonl"]
    journal.drop_merged_shards()
    assert keys(journal) == ["a", "b", "c"], "shards that are being written stay"
    told.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    write(journal, "d")
    assert [len(read_records(path, "event")) for path in journal.shards()] == [2, 1, 1]
    assert keys(journal) == ["a", "d", "b", "c"]


def test_a_shard_whose_writer_was_killed_is_read_and_taken_over(journal: Journal) -> None:
    context = multiprocessing.get_context("fork")
    wrote, never = context.Event(), context.Event()
    process = context.Process(target=_write_when_told, args=(journal, never, wrote, "a"))
    process.start()
    assert wrote.wait(60)
    process.kill()
    process.join()
    journal.path.write_bytes(journal.path.read_bytes() + b'{"key": "cut sh')
    assert keys(journal) == ["a"]
    write(journal, "b")
    assert keys(journal) == ["a", "b"] and journal.shards() == [journal.path]


def test_a_key_written_twice_counts_once_as_it_was_written_last(journal: Journal) -> None:
    with journal.writing() as append:
        for key, value in (("a", 1), ("b", 2), ("a", 3)):
            append({"key": key, "value": value})
    assert journal.read() == [{"key": "a", "value": 3}, {"key": "b", "value": 2}]


def test_of_equal_keys_the_first_shards_is_kept_and_merged_shards_go(journal: Journal) -> None:
    for shard, names in ((0, "ab"), (1, "bc"), (10, "a"), (2, "ad")):
        for key in names:
            append_record(journal.shard(shard), "event", {"key": key, "shard": shard})
    append_record(journal.path.with_name("probes.old.jsonl"), "event", {"key": "not a shard"})
    assert [(record["key"], record["shard"]) for record in journal.read()] == [("a", 0), ("b", 0), ("c", 1), ("d", 2)]
    journal.drop_merged_shards()
    assert [path.name for path in journal.shards()] == ["probes.jsonl", "probes.1.jsonl", "probes.2.jsonl"]
    write(journal, "c", "d")
    journal.drop_merged_shards()
    assert journal.shards() == [journal.path] and keys(journal) == ["a", "b", "c", "d"]
    assert sorted(path.name for path in journal.path.parent.iterdir()) == ["probes.jsonl", "probes.old.jsonl"]


def test_a_damaged_line_is_refused_by_name(journal: Journal) -> None:
    write(journal, "a", "b")
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"a"', b'"x"'))
    with pytest.raises(InputError, match=r"probes\.jsonl line 1: field 'sha256' does not match"):
        journal.read()
