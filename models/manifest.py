"""What sedaq wrote into a folder, by hash: a damaged model is not loaded, and a file of the user's is not written over."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import DamagedError
from ..storage import file_sha256, json_bytes, read_json, write_json

log = logging.getLogger("sedaq")
MANIFEST_FILE = "sedaq_manifest.json"
SCHEDULER_FILE = "scheduler_config.json"
_EDITABLE = ("README.md", SCHEDULER_FILE)  # that no number of the model stands in


def write_manifest(folder: Path) -> None:
    """Note the hash of every file in a folder that is whole."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / MANIFEST_FILE, "manifest", {"files": {str(path.relative_to(folder)): file_sha256(path) for path in paths}})


def _files(folder: Path) -> dict[str, str]:
    found: dict[str, str] = read_json(folder / MANIFEST_FILE, "manifest")["files"]
    return found


def manifest_bytes(names: Iterable[str]) -> int:
    """Size of the manifest of files with these names."""
    return len(json_bytes("manifest", {"files": {name: "0" * 64 for name in sorted(names)}}))


def damaged_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Files of the manifest that are "missing" or "damaged", but for those that a user may edit."""
    for name, sha256 in _files(folder).items():
        if Path(name).name in _EDITABLE:
            continue
        if not (folder / name).is_file():
            yield name, "missing"
        elif file_sha256(folder / name) != sha256:
            yield name, "damaged"


def verify(folder: Path) -> None:
    """Compare what a model is loaded from with the manifest, at about a gigabyte a second; not with SEDAQ_VERIFY=0, nor where there is none.

    Raises:
        DamagedError: which names the first file that is missing or holds other bytes.
    """
    if not (folder / MANIFEST_FILE).exists() or os.environ.get("SEDAQ_VERIFY") == "0":
        return
    for name, sha256 in _files(folder).items():
        if Path(name).name == SCHEDULER_FILE and (folder / name).is_file() and file_sha256(folder / name) != sha256:
            log.warning("%s: is not as sedaq wrote it; images are sampled as it says now", folder / name)
    for name, state in damaged_in(folder):
        if state == "missing":
            raise DamagedError(f"{folder / name}: is missing; delete the folder and apply the plan again")
        raise DamagedError(
            f"{folder / name}: does not hold the bytes that sedaq wrote; delete the folder and apply the plan again, or set SEDAQ_VERIFY=0 if you changed it yourself"
        )


def foreign_to(folder: Path) -> str | None:
    """Something in a folder with a manifest that sedaq did not write as it is; None where there is nothing."""
    known = _files(folder)
    folders = {str(parent) for name in known for parent in Path(name).parents}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() and not path.is_symlink():
            if name not in folders:
                return name
        elif path.is_symlink() or (name != MANIFEST_FILE and (name not in known or file_sha256(path) != known[name])):
            return name
    return None
