"""How fuzz.py changes valid inputs at random: bytes, JSON values and texts."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**18, 10**400, 0.5, -0.0, 1e308, "", "x", "../x", "/etc/passwd", "asis", "2x8g8", "\x00", "é" * 300,
    "\ud800", [], {}, [[]], [1, 2], {"a": 1}, {"": None},
)  # fmt: skip
BYTES = (b"", b"\x00", b"\xff", b"{", b"}", b"[", b'"', b"9" * 40, b"-", b"e999", b"\n", b"\\u0000", b"NaN", b"../", b"1e400")


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four small changes: bits, pieces that go, come twice, move or are replaced."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(found) + 1), rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0 if found:
                found[at % len(found)] ^= 1 << rng.randrange(8)
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = found[at : at + length]
            case 3:
                found[at : at + length] = rng.choice(BYTES)
            case 4:
                found[at : at + length] = rng.randbytes(length)
            case _:
                del found[at:]
    return bytes(found)


def changed_value(value: Any, rng: random.Random) -> Any:
    """One to three values inside of a JSON value are replaced, left out, nested or doubled."""
    found = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(found))
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1:
                holder[key] = [holder[key]]
            case 2 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case 3 if isinstance(holder[key], int | float):
                holder[key] = holder[key] * rng.choice((-1, 10, 1000, 10**6))
            case _:
                holder[key] = copy.deepcopy(rng.choice((*VALUES, rng.choice(places)[0])))
    return found


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys: Any = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def changed_text(text: str, rng: random.Random) -> str:
    """A text with letters of others."""
    return changed_bytes(text.encode(), rng).decode("utf-8", "surrogateescape" if rng.random() < 0.2 else "replace")
