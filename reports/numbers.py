"""How numbers are written, in figures, on the terminal and on the page alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..sensitivity.metrics.registry import METRICS

ABSENT = "–"


def as_float(value: Any) -> float:
    """A number, or NaN for what is not there. Raises TypeError or ValueError for anything else."""
    return math.nan if value is None else float(value)


def number(value: Any, digits: int = 3) -> str:
    """`digits` significant digits, thousands set apart.

    >>> number(0.012345), number(12345.6), number(None)
    ('0.0123', '12,346', '–')
    """
    value = as_float(value)
    if not math.isfinite(value):
        return ABSENT if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}".replace("-", "−")


def with_error(value: Any, error: Any) -> str:
    """Value and standard error, both to the error's second digit.

    >>> with_error(3.14159, 0.0123), with_error(3.14159, None)
    ('3.142 ± 0.012', '3.14')
    """
    value, error = as_float(value), as_float(error)
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return number(value)
    decimals = max(1 - int(f"{error:.1e}".split("e")[1]), 0)
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}".replace("-", "−")


def interval(bounds: Any) -> str:
    """A 95 % interval.

    >>> interval([0.81, 0.9])
    '[0.810, 0.900]'
    """
    return ABSENT if bounds is None else f"[{number(bounds[0])}, {number(bounds[1])}]"


def count(value: Any) -> str:
    value = as_float(value)
    return f"{value:,.0f}" if math.isfinite(value) else ABSENT


def bits(value: Any) -> str:
    value = as_float(value)
    return f"{value:.2f}" if math.isfinite(value) else ABSENT


def megabytes(size_bytes: Any) -> str:
    """1 MB = 10^6 bytes.

    >>> megabytes(3_519_512)
    '3.520 MB'
    """
    size = as_float(size_bytes) / 1e6
    return f"{size:,.3f} MB" if math.isfinite(size) else ABSENT


def millions(value: Any) -> str:
    """Of operations.

    >>> millions(339_738_624), millions(0)
    ('340 M', '0')
    """
    return f"{number(as_float(value) / 1e6)} M" if value else "0"


def percent(value: Any, error: Any = None) -> str:
    """A fraction as a percentage.

    >>> percent(0.9731, 0.0021)
    '97.31 ± 0.21 %'
    """
    value = as_float(value)
    return f"{with_error(100 * value, 100 * as_float(error))} %" if math.isfinite(value) else ABSENT


def duration(seconds: Any) -> str:
    """Seconds as a person would say them.

    >>> duration(4.2), duration(95), duration(7300)
    ('4.2 s', '1 min 35 s', '2 h 1 min')
    """
    seconds = as_float(seconds)
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def planned(format: str | None, inputs: str | None) -> str:
    """What a plan gives a layer.

    >>> planned("2x8g8", "8 bits token"), planned("2x8g8", "")
    ('2x8g8, inputs 8 bits token', '2x8g8')
    """
    return f"{format}, inputs {inputs}" if format and inputs else format or ABSENT


def metric(name: str, entry: Any) -> str:
    """One {value, se} entry of a record's metrics; a bare number and a missing entry are fine too."""
    if not isinstance(entry, dict):
        entry = {"value": entry}
    write = percent if name in METRICS and METRICS[name].unit == "%" else with_error
    return write(entry.get("value"), entry.get("se"))


_BY_COLUMN: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("n_", count),
    ("size_bytes", megabytes),
    ("bits_per_weight", bits),
    ("rate", bits),
    ("seconds", duration),
)


def cell(column: str, value: Any) -> str:
    """Any value of a table, written as its column's name asks: counts for n_…, MB for size_bytes, and so on."""
    if value is None:
        return ABSENT
    if isinstance(value, dict) and "value" in value:
        return metric(column, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return " × ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    for start, write in _BY_COLUMN:
        if column.startswith(start):
            return write(value)
    return count(value) if isinstance(value, int) else number(value)


def sources_line(sources: Mapping[str, Any]) -> str:
    """Where a predictor has from what it knows, in a sentence."""
    prior, probes, both, left = (f"{100 * sources[name]:.0f} %" for name in ("prior", "probes", "interactions", "unexplained"))
    return (
        f"Of the variation of held-out probes the prior ({sources['prior_of']}) explains {prior}, this run's probes {probes}, interactions {both}; "
        f"{left} are left."
    )
