"""Files that are either whole or absent, and that a reader can trust.

Every file carries its kind, a schema number and a sha256 of its content; it is written to a temporary name and renamed. A reader refuses
what does not match and names the field. JSON and safetensors only, no pickle.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import reprlib
import stat
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open

from .errors import DamagedError, InputError
from .records import REMADE, REMEDIES
from .remote import is_url, mirror_of, push

log = logging.getLogger("sedaq")
SCHEMA = 1
_OWN_FIELDS = ("kind", "schema", "sha256")
# By their names in safetensors headers, in the order in which its writer stores tensors last to first.
SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}


def cache_folder() -> Path:
    """Where what is good for all runs on this machine is kept: SEDAQ_CACHE, or the user's cache."""
    return Path(os.environ.get("SEDAQ_CACHE") or user_cache_path("sedaq", appauthor=False)).expanduser()


def local_folder(folder: str | Path) -> Path:
    """Where to work on a folder: in itself, or for a URL such as s3://bucket/run in a mirror of it in the cache (remote.py)."""
    return mirror_of(str(folder), cache_folder() / "remote" / fingerprint(str(folder).rstrip("/"))) if is_url(folder) else Path(folder)


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, NaN and infinity refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the sha256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def tensor_fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """First 16 hex digits of a sha256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unwritable(path: Path, error: OSError) -> InputError:
    """What to raise where `path` cannot be written."""
    return InputError(f"{path}: cannot be written ({error.strerror}); choose a folder that you may write to, with space left")


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk: a new or renamed file outlives a power cut only then."""
    if os.name == "nt":  # Windows opens no folders, and flushes names with their files
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name beside `path`, flush to disk, rename, and flush the folder."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    write_atomically_by(path, write)


def write_atomically_by(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write and flush a file under a temporary name beside `path`, rename it, and flush the folder."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None
    push(path)


def clear_half_written(path: Path) -> None:
    """Remove what processes that were killed left of `path`. For those who know that nobody else writes it now."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}"):
        temporary.unlink(missing_ok=True)


def _seal(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    body = {"kind": kind, "schema": SCHEMA, **content}
    return {**body, "sha256": hashlib.sha256(canonical_json(body).encode()).hexdigest()}


def _complaint(kind: str, content: dict[str, Any], of_tensors: bool) -> str | None:
    from .records.check import complaint  # here, for pydantic takes a tenth of a second to import, and many commands read no record

    return complaint(kind, content, of_tensors=of_tensors)


def _unseal(where: str, kind: str, body: Any, *, remedy: str, model: str | None = None, of_tensors: bool = False) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise DamagedError(f"{where}: not a JSON object; {remedy}")
    expected: dict[str, Any] = {"kind": kind, "schema": SCHEMA}
    for field, value in expected.items():
        if body.get(field) != value:
            raise DamagedError(f"{where}: field '{field}' is {reprlib.repr(body.get(field))} where {value!r} is expected; {remedy}")
    content = {key: value for key, value in body.items() if key not in _OWN_FIELDS}
    try:
        sha256 = _seal(kind, content)["sha256"]
    except (ValueError, RecursionError):  # NaN or a half character, which json reads and sedaq never writes
        sha256 = None
    if sha256 is None or sha256 != body.get("sha256"):
        raise DamagedError(f"{where}: field 'sha256' does not match the content, the file was changed or damaged; {remedy}")
    complaint = _complaint(model or kind, content, of_tensors)
    if complaint is not None:
        raise DamagedError(f"{where}: {complaint}; {remedy}")
    return content


def json_bytes(kind: str, content: Mapping[str, Any]) -> bytes:
    """What write_json writes."""
    return (json.dumps(_seal(kind, content), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    write_atomically(path, json_bytes(kind, content))


def parsed(text: str | bytes, where: str, remedy: str) -> Any:
    """A JSON value; a byte order mark before it is passed over. Raises DamagedError, which names `where`, for text that is none, or nested deeper than Python reads."""
    try:
        return json.loads(text.removeprefix(b"\xef\xbb\xbf") if isinstance(text, bytes) else text)
    except RecursionError:
        raise DamagedError(f"{where}: is nested too deep; {remedy}") from None
    except ValueError as error:
        raise DamagedError(f"{where}: not valid JSON ({error}); {remedy}") from error


def _bytes_of(path: Path) -> bytes:
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def check_regular(path: Path) -> None:
    """Raise InputError for what has no end: a device or a pipe in the place of a file."""
    if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path}: is no file but a device or a pipe; put a file in its place")


def read_json(path: Path, kind: str, *, model: str | None = None, owner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Content that write_json wrote, checked against the model of its kind.

    Args:
        model: the name of a narrower one, where records of a kind differ.
        owner: fields that say whose the file is, and what they must hold; files of earlier versions may lack them.

    Raises:
        DamagedError: a file that is damaged, of another kind, or another's.
        InputError: a missing one.
    """
    remedy = REMEDIES.get(kind, REMADE)
    content = _unseal(str(path), kind, parsed(_bytes_of(path), str(path), remedy), remedy=remedy, model=model)
    check_owner(str(path), content, owner or {}, remedy)
    return content


def check_owner(where: str, content: Mapping[str, Any], owner: Mapping[str, Any], remedy: str) -> None:
    """Raise DamagedError for a record whose fields say that it is another's: it was moved here."""
    for field, value in owner.items():
        if content.get(field, value) != value:
            raise DamagedError(f"{where}: is of another {field}, {content[field]!r} and not {value!r}; {remedy}")


def append_record(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Append one sealed line and flush it to disk. A line that a crash cut short is first removed."""
    line = canonical_json(_seal(kind, content)).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with open(path, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            flush_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    push(path)


def ends_cut_short(path: Path) -> bool:
    """Whether the last line of `path` lacks its line end."""
    return path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")


def read_records(path: Path, kind: str) -> list[dict[str, Any]]:
    """All sealed lines of `path`, none if it does not exist; a last line without its line end is dropped with a warning, for a crash may leave one."""
    records, end = read_records_from(path, kind, 0)
    warn_of_rest(path, end)
    return records


def warn_of_rest(path: Path, end: int) -> None:
    """Warn where a file of records goes on after the last whole line, or has none."""
    if path.exists() and path.stat().st_size == 0:
        log.warning("%s: holds no record", path)
    elif path.exists() and path.stat().st_size > end:
        log.warning("%s: the last line was cut short and is left out", path)


def read_records_from(path: Path, kind: str, start: int, *, owner: Mapping[str, Any] | None = None) -> tuple[list[dict[str, Any]], int]:
    """Those after the first `start` bytes, and up to where they are read: the `start` of the next time. A file that was written anew is read whole.

    Args:
        owner: as for `read_json`.
    """
    if not path.exists():
        return [], 0
    data = _bytes_of(path)
    if start and data[start - 1 : start] != b"\n":
        start = 0
    lines, before = data[start:].split(b"\n"), data.count(b"\n", 0, start)
    records: list[dict[str, Any]] = []
    remedy = REMEDIES.get(kind, REMADE)
    for number, line in enumerate(lines[:-1], start=before + 1):
        where = f"{path} line {number}"
        records.append(_unseal(where, kind, parsed(line, where, remedy), remedy=remedy))
        check_owner(where, records[-1], owner or {}, "move the file away")
    return records, len(data) - len(lines[-1])


def save_tensors(path: Path, kind: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """A safetensors file whose header carries `metadata` and a fingerprint of the tensors."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = {**metadata, "tensors": tensor_fingerprint(sorted(contiguous.items()))}
    write_atomically(path, safetensors.torch.save(contiguous, {"sedaq": json.dumps(_seal(kind, content), allow_nan=False)}))


def load_tensors(
    path: Path, kind: str, *, owner: Mapping[str, Any] | None = None, remedy: str = REMADE
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata that save_tensors wrote; see `read_json` for the arguments and what is raised."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("sedaq")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except SafetensorError as error:
        raise DamagedError(f"{path}: not a whole safetensors file ({error}); {remedy}") from error
    except RuntimeError as error:  # of torch, which maps the file
        raise InputError(f"{path}: cannot be read ({str(error).partition(chr(10))[0]}); check that disk") from error
    if header is None:
        raise DamagedError(f"{path}: has no field 'sedaq' in its header, so sedaq did not write it; {remedy}")
    body = parsed(header, f"{path}: field 'sedaq' of its header", remedy)
    metadata = _unseal(str(path), kind, body, of_tensors=True, remedy=remedy)
    if metadata.pop("tensors", None) != tensor_fingerprint(sorted(tensors.items())):
        raise DamagedError(f"{path}: field 'tensors' does not match the stored tensors, the file is damaged; {remedy}")
    check_owner(str(path), metadata, owner or {}, remedy)
    return tensors, metadata


def read_sealed(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """The kind and the records of a file that this module wrote, whatever it is: JSON, a journal or tensors. All of it is read and checked.

    Raises:
        DamagedError, InputError: as the reader of its kind.
    """
    if path.suffix == ".safetensors":
        try:
            check_regular(path)
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get("sedaq", "{}")
        except (OSError, SafetensorError) as error:
            raise DamagedError(f"{path}: not a whole safetensors file ({error})") from error
        kind = _kind_of(parsed(header, f"{path}: field 'sedaq' of its header", "it was not written by sedaq"), path)
        return kind, [load_tensors(path, kind)[1]]
    first = _bytes_of(path)
    if path.suffix == ".jsonl":
        first = first.partition(b"\n")[0]
        kind = _kind_of(parsed(first or b"{}", f"{path} line 1", REMEDIES["probe"]), path)
        return kind, read_records(path, kind)
    kind = _kind_of(parsed(first, str(path), REMADE), path)
    return kind, [read_json(path, kind)]


def _kind_of(body: Any, path: Path) -> str:
    if not isinstance(body, dict) or not isinstance(body.get("kind"), str):
        raise DamagedError(f"{path}: has no field 'kind'; it was not written by sedaq")
    return body["kind"]
