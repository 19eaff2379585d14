"""Stored files: what was written comes back equal, and whatever was not written by sedaq is refused by name."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch

from sedaq.errors import DamagedError, InputError
from sedaq.storage import (
    SAFETENSORS_DTYPES,
    SCHEMA,
    append_record,
    cache_folder,
    canonical_json,
    fingerprint,
    load_tensors,
    read_json,
    read_records,
    save_tensors,
    tensor_fingerprint,
    write_json,
)


def test_dtypes_are_named_and_ordered_as_the_writer_does() -> None:
    tensors = {name: torch.zeros(2, dtype=dtype) for name, dtype in SAFETENSORS_DTYPES.items()}
    data = safetensors.torch.save(tensors)
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert {name: entry["dtype"] for name, entry in header.items()} == {name: name for name in SAFETENSORS_DTYPES}
    assert sorted(header, key=lambda name: header[name]["data_offsets"]) == list(reversed(SAFETENSORS_DTYPES))


def test_the_cache_is_where_the_environment_says(monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("SEDAQ_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
    monkeypatch.delenv("SEDAQ_CACHE")
    assert cache_folder() == Path("/caches/sedaq")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sedaq"


CONTENT = {"name": "größe", "rate": 0.1 + 0.2, "layers": {"b.0": [1, 2], "a": None}, "flag": True}
TENSORS = {"codes": torch.arange(12, dtype=torch.uint8).reshape(3, 4), "scales": torch.tensor([0.5, -2.0], dtype=torch.float16)}
METADATA = {"format": "2x8g8", "shape": [3, 4]}


def rewritten(path: Path, **changes: object) -> None:
    """Edit a JSON file by hand."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite_header(path: Path, edit) -> None:
    """Change the text of the field 'sedaq' in a safetensors header."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["sedaq"] = edit(header["__metadata__"]["sedaq"])
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


# -- canonical text ----------------------------------------------------------------------------------------------------------------------


def test_equal_values_have_one_text_and_one_fingerprint() -> None:
    assert canonical_json({"b": 1, "a": [1, 2.5]}) == '{"a":[1,2.5],"b":1}'
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1}) != fingerprint({"a": 2, "b": 2})
    assert len(fingerprint({})) == 16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, {"deep": -float("inf")}]])
def test_nan_and_infinity_are_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json(value)
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "plan.json", "note", {"value": value})
    with pytest.raises(ValueError, match="Out of range float"):
        append_record(tmp_path / "probes.jsonl", "event", {"value": value})
    assert list(tmp_path.iterdir()) == []


def test_tensor_fingerprint_sees_name_dtype_shape_and_every_bit() -> None:
    base = torch.arange(6, dtype=torch.float32)
    changed = base.clone()
    changed[5] = torch.nextafter(changed[5], torch.tensor(9.0))
    variants = [("w", base), ("v", base), ("w", base.reshape(2, 3)), ("w", base.double()), ("w", changed)]
    assert len({tensor_fingerprint([variant]) for variant in variants}) == len(variants)
    assert tensor_fingerprint([("w", base.reshape(2, 3).T.contiguous().T)]) == tensor_fingerprint([("w", base.reshape(2, 3))])


# -- JSON --------------------------------------------------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plan.json"
    write_json(path, "note", CONTENT)
    assert read_json(path, "note") == CONTENT
    assert json.loads(path.read_text())["schema"] == SCHEMA
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "edit, culprit",
    [
        (lambda p: rewritten(p, rate=0.3), "field 'sha256'"),
        (lambda p: rewritten(p, more=1), "field 'sha256'"),
        (lambda p: rewritten(p, sha256=None), "field 'sha256'"),
        (lambda p: rewritten(p, rate=float("nan")), "field 'sha256'"),
        (lambda p: rewritten(p, name="\ud800"), "field 'sha256'"),
        (lambda p: rewritten(p, schema=SCHEMA + 1), "field 'schema' is 2 where 1"),
        (lambda p: rewritten(p, kind="run"), "field 'kind' is 'run' where 'note'"),
        (lambda p: p.write_text("[1, 2]"), "not a JSON object"),
        (lambda p: p.write_text(""), "not valid JSON"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (lambda p: p.unlink(), "cannot be read"),
        (lambda p: (p.unlink(), p.mkdir()), "cannot be read"),
    ],
)
def test_a_changed_json_file_is_refused_by_name_and_field(tmp_path: Path, edit, culprit: str) -> None:
    path = tmp_path / "plan.json"
    write_json(path, "note", CONTENT)
    edit(path)
    with pytest.raises(InputError) as caught:
        read_json(path, "note")
    assert str(path) in str(caught.value) and culprit in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_flipped_bit_and_no_cut_changes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(path, "note", CONTENT)
    data = path.read_bytes()
    refused = 0
    damaged = [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]
    damaged += [data[:length] for length in range(0, len(data) - 1, 5)]
    for text in damaged:
        path.write_bytes(text)
        try:
            # Spelling alone may differ: 1e-05 and 1E-05 are one number.
            assert read_json(path, "note") == CONTENT
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0.99 * len(damaged)


# -- tensors -----------------------------------------------------------------------------------------------------------------------------


def test_tensor_round_trip_keeps_bits_dtypes_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save_tensors(path, "numbers", {**TENSORS, "view": TENSORS["codes"].T}, METADATA)
    tensors, metadata = load_tensors(path, "numbers")
    assert metadata == METADATA
    assert tensors["view"].equal(TENSORS["codes"].T)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].equal(tensor)


@pytest.mark.parametrize(
    "edit, culprit",
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "not a whole safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:40]), "not a whole safetensors file"),
        (lambda p: p.write_bytes(b""), "not a whole safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x01"), "field 'tensors'"),
        (lambda p: rewrite_header(p, lambda text: text.replace("2x8g8", "3x8g8")), "field 'sha256'"),
        (lambda p: rewrite_header(p, lambda text: text.replace('"schema": 1', '"schema": 7')), "field 'schema' is 7 where 1"),
        (lambda p: rewrite_header(p, lambda text: text.replace('"numbers"', '"hessian"')), "field 'kind' is 'hessian' where 'numbers'"),
        (lambda p: rewrite_header(p, lambda text: text[:-1]), "field 'sedaq'"),
        (lambda p: rewrite_header(p, lambda text: "3"), "not a JSON object"),
        (lambda p: p.unlink(), "cannot be read"),
    ],
)
def test_a_changed_tensor_file_is_refused_by_name_and_field(tmp_path: Path, edit, culprit: str) -> None:
    path = tmp_path / "e.safetensors"
    save_tensors(path, "numbers", TENSORS, METADATA)
    edit(path)
    with pytest.raises(InputError) as caught:
        load_tensors(path, "numbers")
    assert str(path) in str(caught.value) and culprit in str(caught.value)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match=r"foreign\.safetensors: has no field 'sedaq'"):
        load_tensors(tmp_path / "foreign.safetensors", "numbers")


def test_no_flipped_bit_changes_the_tensors_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    save_tensors(path, "numbers", TENSORS, METADATA)
    data = path.read_bytes()
    refused = 0
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
        try:
            tensors, metadata = load_tensors(path, "numbers")
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        assert metadata == METADATA and all(tensors[name].equal(tensor) for name, tensor in TENSORS.items())
    assert refused > 0.95 * len(data)


# -- records -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "probes.jsonl"
    for i in range(3):
        append_record(path, "event", {"i": i})
    return path


def test_records_come_back_in_order(records: Path, tmp_path: Path) -> None:
    assert read_records(records, "event") == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert read_records(tmp_path / "none.jsonl", "event") == []


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_last_line_cut_short_is_dropped_and_the_next_append_repairs_the_file(records: Path, cut: int) -> None:
    records.write_bytes(records.read_bytes()[:-cut])
    assert read_records(records, "event") == [{"i": 0}, {"i": 1}]
    append_record(records, "event", {"i": 9})
    assert read_records(records, "event") == [{"i": 0}, {"i": 1}, {"i": 9}]


def test_a_file_that_holds_only_a_cut_line_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_bytes(b'{"kind":"pro')
    assert read_records(path, "event") == []
    append_record(path, "event", {"i": 0})
    assert read_records(path, "event") == [{"i": 0}]


@pytest.mark.parametrize(
    "edit, culprit",
    [
        (lambda text: text.replace('"i":1', '"i":7'), "line 2: field 'sha256'"),
        (lambda text: text.replace('"kind":"event"', '"kind":"evaluation"', 1), "line 1: field 'kind'"),
        (lambda text: text.replace('"schema":1', '"schema":0'), "line 1: field 'schema' is 0"),
        (lambda text: text.replace("{", "", 1), "line 1: not valid JSON"),
        (lambda text: text.replace("\n", "\n\n", 1), "line 2: not valid JSON"),
    ],
)
def test_a_changed_record_is_refused_by_line_and_field(records: Path, edit, culprit: str) -> None:
    records.write_text(edit(records.read_text()))
    with pytest.raises(InputError) as caught:
        read_records(records, "event")
    assert f"{records} {culprit}" in str(caught.value)


# -- writing that fails ------------------------------------------------------------------------------------------------------------------

WRITERS = {
    "json": lambda path: write_json(path, "note", CONTENT),
    "tensors": lambda path: save_tensors(path, "numbers", TENSORS, METADATA),
    "record": lambda path: append_record(path, "event", CONTENT),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("depth", ["x", "deep/x"])
def test_a_file_in_place_of_the_folder_is_one_clear_error(tmp_path: Path, write, depth: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written .*choose a folder"):
        write(tmp_path / "file" / depth)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_folder_in_place_of_the_file_is_one_clear_error(tmp_path: Path, write) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="x: cannot be written"):
        write(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    write_json(path, "note", CONTENT)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sedaq.storage.os.fsync", full)
    with pytest.raises(InputError, match=r"plan\.json: cannot be written \(No space left on device\)"):
        write_json(path, "note", {"other": 1})
    assert read_json(path, "note") == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_folder_in_place_of_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path, "event")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        for read in (read_json, read_records, load_tensors):
            with pytest.raises(InputError, match=f"{name}: is no file but a device or a pipe; put a file in its place"):
                read(tmp_path / name, "note")


def test_a_journal_that_lost_lines_is_told_of(records: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_records(records, "event")
    assert caplog.text == ""
    records.write_bytes(records.read_bytes()[:-1])
    read_records(records, "event")
    assert f"{records}: the last line was cut short and is left out" in caplog.text
    records.write_bytes(b"")
    read_records(records, "event")
    assert f"{records}: holds no record" in caplog.text


def test_whose_a_file_is(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", "note", {"run": "one"})
    save_tensors(tmp_path / "a.safetensors", "numbers", TENSORS, {"layer": "a"})
    assert read_json(tmp_path / "a.json", "note", owner={"run": "one", "other": "not stored by an earlier version"}) == {"run": "one"}
    with pytest.raises(DamagedError, match=r"a\.json: is of another run, 'one' and not 'two'; delete the file, it will be made again"):
        read_json(tmp_path / "a.json", "note", owner={"run": "two"})
    with pytest.raises(DamagedError, match="is of another layer, 'a' and not 'b'"):
        load_tensors(tmp_path / "a.safetensors", "numbers", owner={"layer": "b"})


def test_a_disk_that_fails_while_tensors_are_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, "thing", {"x": torch.ones(2)}, {})
    fails = Mock(side_effect=RuntimeError(f"Error closing file <{path}>: Input/output error (5)\nmore"))
    monkeypatch.setattr("sedaq.storage.safe_open", fails)
    with pytest.raises(InputError, match=r"a.safetensors: cannot be read \(Error closing file .*\); check that disk$") as caught:
        load_tensors(path, "thing")
    assert not isinstance(caught.value, DamagedError)
