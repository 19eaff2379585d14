"""What bounds a plan, and how people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InputError

MOST = 2**63  # bytes
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Budgets:
    """Bounds on what a plan may use; None: no such bound."""

    weight_bytes: int | None = None  # that bits_per_weight counts
    file_bytes: int | None = None  # of the denoiser's file
    nanoseconds: int | None = None  # of a sampling step

    @property
    def given(self) -> dict[str, int]:
        return {name: limit for name, limit in vars(self).items() if limit is not None}


def parse_size(text: str) -> int:
    """Bytes that `text` names; 1 MB = 10^6, 1 MiB = 2^20, fractions of a byte are dropped. Raises InputError for anything else.

    >>> parse_size("700kB"), parse_size("1.5 MiB"), parse_size("1500000")
    (700000, 1572864, 1500000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*", text, re.ASCII)
    if match is None or match[2].lower() not in _UNITS or not 1 <= float(match[1]) * _UNITS[match[2].lower()] < MOST:
        raise InputError(f"size {text!r} is not a size; write bytes or a number with kB, MB, GB, KiB, MiB or GiB, such as 700kB")
    return int(float(match[1]) * _UNITS[match[2].lower()])
