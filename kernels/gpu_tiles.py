"""Sizes of the GPU kernels' tiles: a rule, and what benchmarks/gpu_kernels.py found faster on this very device."""

from __future__ import annotations

import functools
import hashlib
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..errors import InputError
from ..storage import cache_folder, read_json, write_json

log = logging.getLogger("sedaq")


@dataclass(frozen=True)
class Tiles:
    """A program's tile of the product, its columns at a time, its warps, and how many steps ahead it loads."""

    tokens: int
    rows: int
    columns: int
    warps: int
    stages: int


UP_TO = (16, 64, 256)  # tokens: each step has tiles of its own, and so has what is above the last
# By bits of the inputs and index in UP_TO. Chosen to fit registers and shared memory of sm_80 and sm_90 without spilling, not yet by time.
DEFAULTS: dict[int, tuple[Tiles, ...]] = {
    16: (Tiles(16, 64, 128, 4, 3), Tiles(64, 64, 64, 4, 3), Tiles(64, 128, 64, 8, 3), Tiles(128, 128, 64, 8, 3)),
    32: (Tiles(16, 64, 32, 4, 3), Tiles(64, 64, 16, 4, 3), Tiles(64, 64, 16, 4, 3), Tiles(128, 64, 16, 8, 3)),
}
DEQUANTIZE = Tiles(0, 32, 128, 4, 1)  # no tokens, no steps
MAX_COLUMNS = 256  # of any tile; the tables of columns are padded to it
MIN_STEPS = 4  # worth a program of its own


def tiles(bits: int, tokens: int, together: int, device: torch.device) -> Tiles:
    """For inputs of so many bits, where inputs and codewords are loaded by so many numbers together."""
    index = sum(tokens > limit for limit in UP_TO)
    found = _measured(str(device)).get(f"{bits} {index}", DEFAULTS[bits][index])
    if together >= 8:
        return found
    return replace(found, columns=max(16, found.columns // 2))  # else registers do not hold all the positions


def for_dequantizing(device: torch.device) -> Tiles:
    """For writing a dense matrix: as measured on this device, else the default."""
    return _measured(str(device)).get("dequantize", DEQUANTIZE)


def parts(tile: Tiles, tokens: int, n_out: int, width: int, processors: int) -> int:
    """How many programs share the columns of one tile: more while processors have less than 8 warps and the shares are not too small."""
    programs, steps, found = -(-tokens // tile.tokens) * -(-n_out // tile.rows), -(-width // tile.columns), 1
    while 2 * found * programs * tile.warps <= 8 * processors and steps >= 2 * found * MIN_STEPS:
        found *= 2
    return found


def path(device: torch.device) -> Path:
    """The file of what was measured on devices of this name."""
    return cache_folder() / f"gpu-tiles-{hashlib.sha256(_name(device).encode()).hexdigest()[:12]}.json"


def keep(found: dict[str, Tiles], device: torch.device) -> None:
    """Tiles by "bits index" or "dequantize" for all processes from now on. Raises InputError where the folder cannot be written to."""
    content = {"device": _name(device), "tiles": {key: asdict(tile) for key, tile in found.items()}}
    write_json(path(device), "gpu tiles", content)
    _measured.cache_clear()


@functools.cache
def _measured(device: str) -> dict[str, Tiles]:
    file = path(torch.device(device))
    if not file.exists():
        return {}
    try:
        return {key: Tiles(**tile) for key, tile in read_json(file, "gpu tiles")["tiles"].items()}
    except InputError as error:
        log.warning("%s: the default tiles are used", error)
        return {}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
