"""What the user fixes before a search: pins, layers kept as they are, ties, and the range of rates."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..aq.formats import AS_IS, Format
from ..aq.plans.menu import Entry, entry
from ..errors import InputError
from ..models.subject import Subject


@dataclass(frozen=True)
class Constraints:
    """Pins win over rates; a pin on one layer of a tie holds for all of it."""

    pins: Mapping[str, Format] = field(default_factory=dict)  # by glob of layer paths; a format need not be on the menu
    keep: Sequence[str] = ()  # globs of layers that stay as they are
    ties: Sequence[str] = ()  # globs; layers that match one choose together, by equal rate: equal shapes get equal formats
    min_rate: float | None = None
    max_rate: float | None = None


def _matching(names: Iterable[str], glob: str, option: str) -> tuple[str, ...]:
    found = tuple(name for name in names if fnmatch.fnmatchcase(name, glob))
    if not found:
        raise InputError(f"{option} {glob}: no layer has such a path; `sedaq inspect` lists them")
    return found


def _groups(names: Sequence[str], globs: Sequence[str]) -> list[tuple[str, ...]]:
    """Disjoint groups of tied layers: ties that share a layer become one."""
    group = {name: {name} for name in names}
    for glob in globs:
        merged = set().union(*(group[name] for name in _matching(names, glob, "`tie`")))
        group.update(dict.fromkeys(merged, merged))
    distinct = dict.fromkeys(tuple(name for name in names if name in members) for members in group.values())
    return [members for members in distinct if len(members) > 1]


def _pinned(names: Sequence[str], constraints: Constraints, groups: Sequence[tuple[str, ...]]) -> dict[str, Format]:
    pinned: dict[str, tuple[Format, str]] = {}

    def pin(name: str, format: Format, reason: str) -> None:
        known, before = pinned.setdefault(name, (format, reason))
        if known != format:
            raise InputError(f"layer {name}: {before} and {reason} contradict each other; remove one")

    for glob, format in constraints.pins.items():
        for name in _matching(names, glob, "`pin`"):
            pin(name, format, f"`pin` {glob}={format}")
    for glob in constraints.keep:
        for name in _matching(names, glob, "`keep`"):
            pin(name, AS_IS, f"`keep` {glob}")
    for group in groups:
        for source in [name for name in group if name in pinned]:
            for name in group:
                pin(name, pinned[source][0], f"its tie with {source} and {pinned[source][1]}")
    return {name: format for name, (format, _) in pinned.items()}


def _within_rates(name: str, menu: Sequence[Entry], n_weights: int, constraints: Constraints) -> tuple[Entry, ...]:
    """Entries in the range of rates; an entry that weighs more than the rate that it is named by counts with what it weighs as well."""
    low = constraints.min_rate if constraints.min_rate is not None else 0.0
    high = constraints.max_rate if constraints.max_rate is not None else float("inf")
    left = tuple(item for item in menu if item.rate <= high and max(item.rate, 8 * item.size_bytes / n_weights) >= low)
    if not left:
        rates = ", ".join(f"{item.rate:g}" for item in menu)
        raise InputError(f"layer {name}: none of its rates {rates} is within {low:g} to {high:g}; change these or pin it")
    return left


def apply_constraints(
    subject: Subject, menus: Mapping[str, Sequence[Entry]], constraints: Constraints
) -> tuple[dict[str, tuple[Entry, ...]], list[tuple[str, ...]], list[str]]:
    """Menus that respect `constraints`, groups of tied layers, and a note on every constraint that was applied.

    Raises:
        InputError: a glob that matches nothing, formats that contradict each other or cannot fit, an empty range of rates, nothing left.
    """
    low, high = constraints.min_rate, constraints.max_rate
    if low is not None and high is not None and not low <= high:
        raise InputError(f"`min_rate` {low:g} is above `max_rate` {high:g}; exchange them")
    names = [layer.name for layer in subject.layers]
    groups = _groups(names, constraints.ties)
    pinned = _pinned(names, constraints, groups)
    restricted: dict[str, tuple[Entry, ...]] = {}
    for layer in subject.layers:
        if layer.name not in pinned:
            restricted[layer.name] = _within_rates(layer.name, menus[layer.name], layer.n_weights, constraints)
            continue
        try:
            restricted[layer.name] = (entry(subject, layer, pinned[layer.name]),)
        except InputError as error:
            raise InputError(f"layer {layer.name}: {error}") from error
    notes = [f"{name}: pinned to {format}" for name, format in pinned.items()]
    notes += [f"tied: {', '.join(group)}" for group in groups]
    notes += [f"{option} {rate:g}" for option, rate in (("min_rate", low), ("max_rate", high)) if rate is not None]
    return restricted, groups, notes
