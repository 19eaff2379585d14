"""Run folders at a URL, such as s3://bucket/run: all work is done in a local folder, the mirror, that is kept equal to it file by file.

What was written whole in a mirror is put to its URL, where an object appears whole or not at all (`push`). What a mirror lacks is fetched from
there (`pull`). Artifacts have their key in their name and never change, so that a copy is good for ever; the few files that do change are
fetched again whenever a run is opened (`mirror_of`). Nobody appends to an object: each record of a journal is one of its own
(runtime/journal.py). Locks hold on one machine; two machines that make the same artifact put the same there.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

CHANGING = ("", "plans", "predictor", "predictor_tuned", "figures")  # folders of a run whose files change
_urls: dict[Path, str] = {}  # of mirrors


def is_url(folder: str | Path) -> bool:
    """Whether a folder is named by a URL."""
    return isinstance(folder, str) and re.match(r"[a-z][a-z0-9+.-]*://", folder) is not None


def mirror_of(url: str, folder: Path) -> Path:
    """Make `folder` the mirror of a URL, with all of its files that change.

    Raises:
        InputError: nothing is installed for such URLs, or the store cannot be reached.
    """
    url = url.rstrip("/")
    with _reaching(url):
        files, root = _opened(url)
        _urls[folder] = url
        for name in CHANGING:
            for entry in _listed(files, f"{root}/{name}".rstrip("/")):
                path = folder / name / entry["name"].rpartition("/")[2]
                # Journals grow: one that is longer here has what a killed process could not put there any more.
                if path.suffix != ".jsonl" or not path.exists() or path.stat().st_size < entry["size"]:
                    _fetch(files, entry["name"], path)
    return folder


def url_of(path: Path) -> str | None:
    """Where a file or folder of a mirror lies; None for others."""
    for folder in (path, *path.parents):
        if folder in _urls:
            return "/".join([_urls[folder], *path.relative_to(folder).parts])
    return None


def push(path: Path) -> None:
    """Put a whole file of a mirror to its URL; nothing is done with other files, and with hidden ones, which are of this machine."""
    if path.name.startswith(".") or (url := url_of(path)) is None:
        return
    with _reaching(url):
        files, there = _opened(url)
        try:
            files.put_file(str(path), there)
        except FileNotFoundError:  # in a file system with folders
            files.makedirs(there.rpartition("/")[0], exist_ok=True)
            files.put_file(str(path), there)


def pull(path: Path) -> bool:
    """Fetch a file that a mirror lacks. Returns whether it is there now."""
    if path.exists() or (url := url_of(path)) is None:
        return path.exists()
    with _reaching(url):
        return _fetch(*_opened(url), path)


def is_there(path: Path) -> bool:
    """Whether a file exists, here or at the URL that its mirror is of."""
    if path.exists() or (url := url_of(path)) is None:
        return path.exists()
    with _reaching(url):
        files, there = _opened(url)
        return bool(files.exists(there))


def pull_all(folder: Path) -> None:
    """Fetch the files of a mirror's folder that it lacks."""
    if (url := url_of(folder)) is None:
        return
    with _reaching(url):
        files, there = _opened(url)
        for entry in _listed(files, there):
            path = folder / entry["name"].rpartition("/")[2]
            if not path.exists():
                _fetch(files, entry["name"], path)


def _opened(url: str) -> tuple[Any, str]:
    """A file system and the path in it: anew in each process, for connections do not survive a fork. What others write is seen at once."""
    import fsspec

    files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return files, path


def _listed(files: Any, folder: str) -> list[dict[str, Any]]:
    """The files of a folder, none where it does not exist."""
    try:
        return [entry for entry in files.ls(folder, detail=True) if entry["type"] == "file"]
    except FileNotFoundError:
        return []


def _fetch(files: Any, there: str, path: Path) -> bool:
    """Whether there was such a file, which is whole under `path` then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        files.get_file(there, str(temporary))
        temporary.replace(path)
    except FileNotFoundError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turn what file systems raise, which is of many kinds, into one line."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"{url}: {error}; install what fsspec needs for such URLs, for example s3fs for s3://") from error
    except Exception as error:
        if isinstance(error, InputError):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{url}: cannot be reached ({text}); check the URL, the network and your credentials") from error
