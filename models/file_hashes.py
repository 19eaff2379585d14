"""What images depend on beside the weights that are quantized: the other files of a model's folder, by hash."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path

from ..errors import InputError
from ..runtime.tasks import json_task
from ..storage import cache_folder, file_sha256, fingerprint
from .folders import SUBJECT_FILE, copies_of, is_text, read_config, weights_of

SMALL = 1 << 20  # bytes, below which hashing takes no time
SETTLED = 2  # seconds after which a file that changes again has another time
BARE = ("scheduler_config.json", SUBJECT_FILE)  # what a denoiser's own folder has beside config and weights
_NOTES = ("_diffusers_version", "_name_or_path", "transformers_version")  # of a config, on which nothing depends


def kept_sha256(path: Path) -> str:
    """The sha256 of a file. That of a large file is kept in the user's cache beside its place, size and times, and read only once."""
    status = path.stat()
    if status.st_size < SMALL or time.time() - max(status.st_mtime, status.st_ctime) < SETTLED:
        return file_sha256(path)
    key = fingerprint([str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
    task = json_task(f"sha256 of {path}", cache_folder() / "hashes" / f"{key}.json", "hash", lambda: {"file": file_sha256(path)})
    return str(task.result()["file"])


def hashes_of(folder: Path, without: Collection[str] = ()) -> dict[str, str]:
    """First 16 hex digits of a sha256 of every file that a model is loaded from, by its path in the folder. Texts for people are left out.

    Args:
        folder: of a pipeline, or of a bare denoiser.
        without: components of the pipeline that are left out; "" leaves out a bare denoiser's weights and config.
    """
    if (folder / "model_index.json").exists():
        paths = {name: path for name, path, _ in copies_of(folder, without) if not is_text(path)}
    else:
        paths = {name: folder / name for name in BARE if (folder / name).exists()}
        if "" not in without:
            paths |= {path.name: path for path in (folder / "config.json", *weights_of(folder))}
    return {name: _sha256(path)[:16] for name, path in sorted(paths.items())}


def _sha256(path: Path) -> str:
    """Of a config what it says, without the versions of who wrote it."""
    if path.suffix == ".json" and path.stat().st_size < SMALL:
        try:
            content = read_config(path)
        except InputError:
            return file_sha256(path)
        return fingerprint({name: value for name, value in content.items() if name not in _NOTES})
    return kept_sha256(path)


def first_difference(known: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The first file that only one of two folders has, or that differs in them."""
    return next((name for name in sorted(known.keys() | now.keys()) if known.get(name) != now.get(name)), None)
