"""The decisions of a search, what each option weighs and costs, and the budgets that bound their sum."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from ..aq.formats import Format
from ..aq.menu import Entry, header_bytes, model_bytes
from ..errors import InputError, SedaqError
from ..models.subject import Subject
from .program import choose, taken

Choice = NDArray[np.int64]  # (n_units,), index of the option taken by each unit
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_HEADER_BYTES = 8 + len('{"__metadata__":{"format":"pt"}}') + 7  # its length, what it says beside tensors, its padding at most


def parse_size(text: str) -> int:
    """Bytes that `text` names; 1 MB = 10^6, 1 MiB = 2^20, fractions of a byte are dropped. Raises InputError for anything else.

    >>> parse_size("700kB"), parse_size("1.5 MiB"), parse_size("1500000")
    (700000, 1572864, 1500000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS or float(match[1]) * _UNITS[match[2].lower()] < 1:
        raise InputError(f"size {text!r} is not a size; write bytes or a number with kB, MB, GB, KiB, MiB or GiB, such as 700kB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


@dataclass(frozen=True)
class Unit:
    """One decision: a layer, or layers that are tied and take their options of equal rate together."""

    names: tuple[str, ...]
    options: tuple[tuple[Entry, ...], ...]  # by ascending weight bytes; options[k][i] is what names[i] gets
    costs: tuple[float, ...]  # additive expected increase of the target, one an option


@dataclass(frozen=True)
class Problem:
    """Units, and budgets that hold for the sum. `fixed_file_bytes` is an upper bound, so that a plan within the budget is so on disk."""

    units: tuple[Unit, ...]
    n_weights: int
    fixed_file_bytes: int  # all of the denoiser's file that is not an eligible weight or its header entries
    max_weight_bytes: int | None = None
    max_file_bytes: int | None = None

    def within(self, *, max_weight_bytes: int | None = None, max_file_bytes: int | None = None) -> Problem:
        """The same decisions under other budgets. Raises InputError, with the least reachable size, for one that is impossible."""
        if max_weight_bytes is not None and max_weight_bytes < self.least_weight_bytes:
            bits = 8 * max_weight_bytes / self.n_weights
            raise InputError(
                f"the budget of {bits:.4g} bits per weight cannot be met; the least reachable is {self.least_bits_text} bits, "
                "allow that or loosen pins and rates"
            )
        if max_file_bytes is not None and max_file_bytes < self.least_file_bytes:
            raise InputError(
                f"the budget of {max_file_bytes} bytes cannot be met; the least reachable is {self.least_file_bytes} bytes, "
                "allow that or loosen pins and rates"
            )
        return replace(self, max_weight_bytes=max_weight_bytes, max_file_bytes=max_file_bytes)

    def bounded(self, *, bits: float | None = None, size_bytes: int | None = None) -> Problem:
        """The same decisions with at most that many bits per weight and bytes of the file. Raises InputError as `within` does."""
        if bits is not None and not (math.isfinite(bits) and bits > 0):
            raise InputError(f"the budget of {bits} bits per weight is no budget; the least reachable is {self.least_bits_text} bits")
        weight_bytes = None if bits is None else math.floor(bits * self.n_weights / 8 * (1 + 1e-12))  # 2.1 bits of 80 weights are 21 bytes
        return self.within(max_weight_bytes=weight_bytes, max_file_bytes=size_bytes)

    @cached_property
    def n_options(self) -> Choice:
        """(n_units,)"""
        return np.array([len(unit.options) for unit in self.units])

    def _table(self, value: Callable[[Unit, int], float], fill: float, dtype: type) -> NDArray[np.generic]:
        table: NDArray[np.generic] = np.full((len(self.units), int(self.n_options.max())), fill, dtype)
        for row, unit in enumerate(self.units):
            table[row, : len(unit.options)] = [value(unit, k) for k in range(len(unit.options))]
        return table

    @cached_property
    def costs(self) -> NDArray[np.float64]:
        """(n_units, K) additive costs; infinite where a unit has fewer options."""
        return self._table(lambda unit, k: unit.costs[k], math.inf, np.float64).astype(np.float64)

    @cached_property
    def rates(self) -> NDArray[np.float64]:
        """(n_units, K); infinite where a unit has fewer options."""
        return self._table(lambda unit, k: unit.options[k][0].rate, math.inf, np.float64).astype(np.float64)

    @cached_property
    def weight_bytes(self) -> NDArray[np.int64]:
        """(n_units, K) bytes that bits_per_weight counts."""
        return self._table(lambda unit, k: sum(entry.size_bytes for entry in unit.options[k]), 2**52, np.int64).astype(np.int64)

    @cached_property
    def file_bytes(self) -> NDArray[np.int64]:
        """(n_units, K) bytes in the file, header entries included."""
        return self._table(lambda unit, k: sum(entry.file_bytes for entry in unit.options[k]), 2**52, np.int64).astype(np.int64)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(n_budgets, n_units, K), one table a budget."""
        tables = [(self.weight_bytes, self.max_weight_bytes), (self.file_bytes, self.max_file_bytes)]
        bounded = [table for table, limit in tables if limit is not None]
        return np.stack(bounded) if bounded else np.zeros((0, *self.costs.shape), np.int64)

    @cached_property
    def _books(self) -> dict[str, Entry]:
        """Codebooks that layers share, each with an entry that needs it."""
        return {entry.book: entry for unit in self.units for option in unit.options for entry in option if entry.book}

    @cached_property
    def needs(self) -> NDArray[np.bool_]:
        """(n_books, n_units, K), which options need which shared codebooks."""
        tables = [self._table(partial(_needs, book), False, np.bool_) for book in self._books]
        return np.array(tables, np.bool_).reshape(-1, *self.costs.shape)

    @cached_property
    def book_sizes(self) -> NDArray[np.int64]:
        """(n_budgets, n_books), bytes that count once if any option needs them."""
        columns = [(entry.book_bytes, entry.book_file_bytes) for entry in self._books.values()]
        bounded = [self.max_weight_bytes is not None, self.max_file_bytes is not None]
        return np.array(columns, np.int64).reshape(-1, 2).T[bounded]

    def _needed(self, choice: Choice) -> NDArray[np.bool_]:
        """(n_books,)"""
        return np.asarray(self.needs[:, np.arange(len(self.units)), choice].any(axis=1))

    def steps(self, choice: Choice) -> NDArray[np.int64]:
        """(n_budgets, n_units, K): by how much each option would raise what is used, at most; codebooks that are new with it included."""
        rows = np.arange(len(self.units))
        steps = self.sizes - self.sizes[:, rows, choice][:, :, None]
        new = np.nonzero(~self._needed(choice))[0]
        return steps + np.tensordot(self.book_sizes[:, new], self.needs[new], 1)

    @cached_property
    def limits(self) -> NDArray[np.int64]:
        """(n_budgets,), what the sums over `sizes` must not exceed."""
        fixed = [(0, self.max_weight_bytes), (self.fixed_file_bytes, self.max_file_bytes)]
        return np.array([limit - used for used, limit in fixed if limit is not None], np.int64)

    @cached_property
    def least_weight_bytes(self) -> int:
        return self.total_weight_bytes(self._least(self.weight_bytes, [entry.book_bytes for entry in self._books.values()]))

    @cached_property
    def least_file_bytes(self) -> int:
        return self.total_file_bytes(self._least(self.file_bytes, [entry.book_file_bytes for entry in self._books.values()]))

    def _least(self, table: NDArray[np.int64], book_bytes: Sequence[int]) -> Choice:
        """The choice of least bytes: whether shared codebooks pay is a matter of all that share them."""
        choice = table.argmin(axis=1)
        if self._needed(choice).any():
            excess = np.where(np.isfinite(self.costs), table - table.min(axis=1, keepdims=True), np.inf)
            none = np.zeros((0, *table.shape)), np.zeros((0, len(book_bytes))), np.zeros(0)  # no budgets
            result = choose(excess, self.needs, np.array(book_bytes, float), *none)
            choice = choice if result.x is None else taken(excess, result.x)
        return choice

    @property
    def least_bits(self) -> float:
        return 8 * self.least_weight_bytes / self.n_weights

    @property
    def least_bits_text(self) -> str:
        """Rounded up, so that a budget of what it says can be met."""
        return f"{math.ceil(self.least_bits * 1e4) / 1e4:.4f}"

    @property
    def greatest_bits(self) -> float:
        return 8 * self.total_weight_bytes(self.n_options - 1) / self.n_weights

    def total_weight_bytes(self, choice: Choice) -> int:
        books = {entry.book: entry.book_bytes for entry in self.entries(choice).values()}
        return int(self.weight_bytes[np.arange(len(self.units)), choice].sum()) + sum(books.values())

    def total_file_bytes(self, choice: Choice) -> int:
        """Upper bound of the file's bytes."""
        books = {entry.book: entry.book_file_bytes for entry in self.entries(choice).values()}
        return self.fixed_file_bytes + int(self.file_bytes[np.arange(len(self.units)), choice].sum()) + sum(books.values())

    def used(self, choice: Choice) -> NDArray[np.int64]:
        """(n_budgets,), to be compared with `limits`."""
        total: NDArray[np.int64] = self.sizes[:, np.arange(len(self.units)), choice].sum(axis=1) + self.book_sizes @ self._needed(choice)
        return total

    def fits(self, choice: Choice) -> bool:
        return bool((self.used(choice) <= self.limits).all())

    def cost(self, choice: Choice) -> float:
        """Sum of additive costs."""
        return math.fsum(self.costs[np.arange(len(self.units)), choice])

    def entries(self, choice: Choice) -> dict[str, Entry]:
        """What each layer gets."""
        taken = zip(self.units, choice, strict=True)
        return {name: entry for unit, k in taken for name, entry in zip(unit.names, unit.options[k], strict=True)}

    def formats(self, choice: Choice) -> dict[str, Format]:
        return {name: entry.format for name, entry in self.entries(choice).items()}


def _needs(book: str, unit: Unit, k: int) -> bool:
    return any(entry.book == book for entry in unit.options[k])


def _fixed_file_bytes(subject: Subject, menus: Mapping[str, Sequence[Entry]]) -> int:
    """Bytes of the file, at most, that no entry of a menu counts."""
    weights = {f"{name}.weight" for name in menus}
    specs = {name: spec for name, spec in subject.tensor_specs.items() if name not in weights}
    payload, whole = sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs.values()), model_bytes(subject)
    # A pin may weigh more than the weight as it is; then offsets can have more digits than entries counted, in at most 4 tensors a layer.
    heaviest = payload + sum(max(entry.size_bytes + entry.book_bytes for entry in menu) for menu in menus.values())
    digits = max(0, len(str(heaviest)) - len(str(whole)))
    return payload + header_bytes(specs, whole) + _HEADER_BYTES + 2 * digits * (len(specs) + 4 * len(menus))


def _unit(names: tuple[str, ...], menus: Mapping[str, Sequence[Entry]], cost: Callable[[str, Entry], float]) -> Unit:
    """A decision over the rates that all of `names` offer."""
    by_rate = [{entry.rate: entry for entry in menus[name]} for name in names]
    alone = len(names) == 1 or all(len(menus[name]) == 1 for name in names)
    rows = (
        zip(*(menus[name] for name in names), strict=True)
        if alone
        else (tuple(table[rate] for table in by_rate) for rate in by_rate[0] if all(rate in table for table in by_rate))
    )
    options = tuple(sorted(rows, key=lambda row: sum(entry.size_bytes for entry in row)))
    if not options:
        raise InputError(f"tie {', '.join(names)}: the layers have no rate in common; tie layers of equal shape, or change pins and rates")
    costs = tuple(math.fsum(cost(name, entry) for name, entry in zip(names, row, strict=True)) for row in options)
    if not np.isfinite(costs).all():
        raise SedaqError(f"layer {names[0]}: the predictor gave a cost that is not finite; fit it again")
    return Unit(names, options, costs)


def build_problem(
    subject: Subject,
    menus: Mapping[str, Sequence[Entry]],
    cost: Callable[[str, Entry], float],
    *,
    ties: Sequence[tuple[str, ...]] = (),
    bits: float | None = None,
    size_bytes: int | None = None,
) -> Problem:
    """The search for a plan of `subject`.

    Args:
        menus: entries that each eligible layer may take, by ascending size.
        cost: additive cost of giving a layer an entry, in units of the target, lower is better.
        ties: disjoint groups of layers that choose by equal rate.
        bits: bound on total bits per weight; size_bytes: bound on the denoiser's file. None: no such bound.

    Raises:
        InputError: a budget that is not positive or below the least reachable size, which the message states; ties without a common rate.
    """
    group_of = {name: group for group in ties for name in group}
    groups = dict.fromkeys(group_of.get(layer.name, (layer.name,)) for layer in subject.layers)
    units = tuple(_unit(group, menus, cost) for group in groups)
    n_weights = sum(layer.n_weights for layer in subject.layers)
    problem = Problem(units, n_weights, _fixed_file_bytes(subject, menus))
    return problem.bounded(bits=bits, size_bytes=size_bytes)
