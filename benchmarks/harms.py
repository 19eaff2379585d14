"""What faults.py does to files: harms of the bytes, fields of another type under a right seal, and other files in their place."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open
from tiny_run import Scene

from sedaq.records.check import complaint
from sedaq.reports.doctor import RECORDS
from sedaq.storage import canonical_json, json_bytes

OWN = ("kind", "schema", "sha256")


Edit = Callable[[str, dict[str, Any]], bool]
Fault = Callable[[Path, random.Random], bool]  # harms a file; False where it cannot be harmed so


def _bytes(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Fault:
    def harm(path: Path, rng: random.Random) -> bool:
        data = path.read_bytes()
        path.unlink()  # it may be a link to the file that is copied
        path.write_bytes(change(bytearray(data), rng))
        return True

    return harm


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _as_folder(path: Path, _: random.Random) -> bool:
    path.unlink()
    path.mkdir()
    return True


def _forbid(path: Path, _: random.Random) -> bool:
    data = path.read_bytes()
    path.unlink()  # rights belong to all links
    path.write_bytes(data)
    path.chmod(0)
    return True


def _of_another_type(value: Any) -> Any:
    return 7 if isinstance(value, (str, list, dict)) else "x"


def _nested(value: Any) -> Any:
    return [[value]]


def _huge(value: Any) -> Any:
    return 10**18 if isinstance(value, int) and not isinstance(value, bool) else value


def _resealed(wrong: Callable[[Any], Any] | None) -> Fault:
    """One field of the content, at any depth, is another, or one that must be there is missing; the seal is right."""

    def edit(kind: str, content: dict[str, Any], of_tensors: bool, rng: random.Random) -> bool:
        fields = [(holder, key) for holder, key in _fields(content) if wrong is None or wrong(holder[key]) != holder[key]]
        if wrong is None:  # one without it may be of an earlier version
            fields = [(content, key) for key in content if _is_refused(kind, {k: v for k, v in content.items() if k != key}, of_tensors)]
        if not fields:
            return False
        holder, key = rng.choice(fields)
        if wrong is None:
            del holder[key]
        else:
            holder[key] = wrong(holder[key])
        return True

    def harm(path: Path, rng: random.Random) -> bool:
        try:
            return _rewritten(path, lambda kind, content: edit(kind, content, path.suffix == ".safetensors", rng))
        except ValueError:
            return False

    return harm


def _is_refused(kind: str, content: dict[str, Any], of_tensors: bool) -> bool:
    return complaint(kind, content, of_tensors=of_tensors) is not None


def _fields(content: Any) -> Iterator[tuple[Any, Any]]:
    keys: Any = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _fields(content[key])


def _rewritten(path: Path, edit: Edit) -> bool:
    """Edit what a sealed file holds, and seal it again."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("sedaq")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if header is None:
            return False
        changed, text = _sealed(json.loads(header), edit)
        path.unlink()
        path.write_bytes(safetensors.torch.save(tensors, {"sedaq": text.decode()}))
        return changed
    if path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines()
        changed, text = _sealed(json.loads(lines[-1]), edit)
        lines[-1] = canonical_json(json.loads(text)).encode()
        path.write_bytes(b"\n".join(lines) + b"\n")
        return changed
    body = json.loads(path.read_bytes())
    if "sha256" not in body:
        return False
    changed, text = _sealed(body, edit)
    path.unlink()
    path.write_bytes(text)
    return changed


def _sealed(body: dict[str, Any], edit: Edit) -> tuple[bool, bytes]:
    content = {key: value for key, value in body.items() if key not in OWN}
    tensors = content.pop("tensors", None) if body.get("kind") != "outline" else None
    changed = edit(body["kind"], content)
    return changed, json_bytes(body["kind"], content | ({} if tensors is None else {"tensors": tensors}))


FAULTS: Mapping[str, Fault] = {
    "cut in half": _bytes(lambda data, _: data[: len(data) // 2]),
    "cut by a byte": _bytes(lambda data, _: data[:-1]),
    "half zero": _bytes(lambda data, _: data[: len(data) // 2] + bytes(len(data) - len(data) // 2)),
    "empty": _bytes(lambda data, _: b""),
    "a bit flipped": _bytes(_flip),
    "another bit flipped": _bytes(_flip),
    "a folder": _as_folder,
    "a field missing": _resealed(None),
    "a field of another type": _resealed(_of_another_type),
    "another field of another type": _resealed(_of_another_type),
    "a field nested deeper": _resealed(_nested),
    "a field huge": _resealed(_huge),
    **({} if os.geteuid() == 0 else {"no right to read": _forbid}),
}


def swaps(path: str, scene: Scene, others: Mapping[str, Scene], rng: random.Random) -> Iterator[tuple[str, Path]]:
    """Files that are put in the place of `path`: of the same kind from the same run and from others, and of another kind."""
    kind = kind_of(path)
    for name, other in {"file of this run": scene, **others}.items():
        same = [
            found
            for found in sorted(other.run.rglob("*"))
            if found.is_file() and kind_of(str(found.relative_to(other.run))) == kind and found.suffix == Path(path).suffix
        ]
        same = [found for found in same if other is not scene or str(found.relative_to(scene.run)) != path]
        if same:
            exact = [found for found in same if str(found.relative_to(other.run)) == path]
            yield f"swapped with a {name}", (exact or [rng.choice(same)])[0]
    foreign = [found for found in sorted(scene.run.rglob(f"*{Path(path).suffix}")) if kind_of(str(found.relative_to(scene.run))) != kind]
    if foreign:
        yield "of another kind", rng.choice(foreign)


def kind_of(path: str) -> str:
    return next((kind for pattern, (kind, _) in RECORDS.items() if re.fullmatch(pattern, path)), "table")


def put(source: Path) -> Fault:
    """The fault that another file lies in the place."""

    def harm(path: Path, _: random.Random) -> bool:
        if source.read_bytes() == path.read_bytes():
            return False
        path.unlink()
        shutil.copy(source, path)
        return True

    return harm
