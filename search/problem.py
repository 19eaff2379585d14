"""The decisions of a search, what each option uses and costs, and the budgets that bound their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ..aq.formats import Format
from ..aq.plans.menu import Entry
from ..errors import InputError
from .budgets import Budgets
from .program import choose, taken

Choice = NDArray[np.int64]  # (n_units,), index of the option taken by each unit


@dataclass(frozen=True)
class Unit:
    """One decision: a layer, or layers that are tied and take their options of equal rate together."""

    names: tuple[str, ...]
    options: tuple[tuple[Entry, ...], ...]  # by ascending weight bytes; options[k][i] is what names[i] gets
    costs: tuple[float, ...]  # additive expected increase of the target, one an option
    nanoseconds: tuple[int, ...] = ()  # of a step, one an option; empty where times are not asked for


@dataclass(frozen=True)
class Problem:
    """Units, and budgets that hold for the sum. `fixed_file_bytes` is an upper bound, so that a plan within the budget is so on disk."""

    units: tuple[Unit, ...]
    n_weights: int
    fixed_file_bytes: int  # all of the denoiser's file that is not an eligible weight or its header entries
    fixed_nanoseconds: int = 0  # of all of a step but the eligible layers
    budgets: Budgets = field(default_factory=Budgets)

    def within(self, budgets: Budgets) -> Problem:
        """The same decisions under other budgets. Raises InputError, with the least reachable, for one that is impossible."""
        for name, limit in budgets.given.items():
            if limit < self.minimum(name):
                raise InputError(
                    f"the budget of {self.text(name, limit)} cannot be met; the least reachable is {self._min_text(name)}, "
                    "allow that or loosen pins and rates"
                )
        return replace(self, budgets=budgets)

    def bounded(self, *, bits: float | None = None, size_bytes: int | None = None, ms_per_step: float | None = None) -> Problem:
        """The same decisions with at most that many bits per weight, bytes of the file and milliseconds a step. Raises as `within` does."""
        for name, limit, unit in (("weight_bytes", bits, "bits per weight"), ("nanoseconds", ms_per_step, "ms a step")):
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise InputError(f"the budget of {limit} {unit} is no budget; the least reachable is {self._min_text(name)}")
        weight_bytes = None if bits is None else math.floor(bits * self.n_weights / 8 * (1 + 1e-12))  # 2.1 bits of 80 weights are 21 bytes
        return self.within(Budgets(weight_bytes, size_bytes, None if ms_per_step is None else math.floor(ms_per_step * 1e6)))

    def priced(self, cost: Callable[[str, Entry], float]) -> Problem:
        """The same decisions at other costs."""

        def of_option(unit: Unit, option: tuple[Entry, ...]) -> float:
            return math.fsum(cost(name, entry) for name, entry in zip(unit.names, option, strict=True))

        return replace(self, units=tuple(replace(u, costs=tuple(of_option(u, option) for option in u.options)) for u in self.units))

    def text(self, name: str, amount: int) -> str:
        """An amount of what a budget bounds, as people read it."""
        if name == "weight_bytes":
            return f"{8 * amount / self.n_weights:.4g} bits per weight"
        return f"{amount / 1e6:.4g} ms a step" if name == "nanoseconds" else f"{amount} bytes"

    def _min_text(self, name: str) -> str:
        """Rounded up, so that a budget of what it says can be met."""
        if name == "weight_bytes":
            return f"{self.min_bits_text} bits"
        minimum = self.minimum(name)
        return f"{math.ceil(minimum / 1e2) / 1e4:.4f} ms" if name == "nanoseconds" else f"{minimum} bytes"

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
    def amounts(self) -> dict[str, NDArray[np.int64]]:
        """(n_units, K) for each name of Budgets: what every option uses, codebooks that layers share apart; far too much beyond a menu's end."""
        of_options: dict[str, Callable[[Unit, int], int]] = {
            "weight_bytes": lambda unit, k: sum(entry.size_bytes for entry in unit.options[k]),
            "file_bytes": lambda unit, k: sum(entry.file_bytes for entry in unit.options[k]),
            "nanoseconds": lambda unit, k: unit.nanoseconds[k] if unit.nanoseconds else 0,
        }
        return {name: self._table(of_option, 2**52, np.int64).astype(np.int64) for name, of_option in of_options.items()}

    @cached_property
    def _fixed(self) -> dict[str, int]:
        """What a plan uses whatever its choices."""
        return {"weight_bytes": 0, "file_bytes": self.fixed_file_bytes, "nanoseconds": self.fixed_nanoseconds}

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(n_budgets, n_units, K), one table a budget."""
        bounded = [self.amounts[name] for name in self.budgets.given]
        return np.stack(bounded) if bounded else np.zeros((0, *self.costs.shape), np.int64)

    @cached_property
    def limits(self) -> NDArray[np.int64]:
        """(n_budgets,), what the sums over `sizes` must not exceed."""
        return np.array([limit - self._fixed[name] for name, limit in self.budgets.given.items()], np.int64)

    # -- codebooks that layers share -------------------------------------------------------------------------------------------------

    @cached_property
    def _books(self) -> dict[str, Entry]:
        """Each with an entry that needs it."""
        return {entry.book: entry for unit in self.units for option in unit.options for entry in option if entry.book}

    @cached_property
    def needs(self) -> NDArray[np.bool_]:
        """(n_books, n_units, K), which options need which shared codebooks."""
        tables = [self._table(partial(_needs, book), False, np.bool_) for book in self._books]
        return np.array(tables, np.bool_).reshape(-1, *self.costs.shape)

    @cached_property
    def _book_amounts(self) -> dict[str, NDArray[np.int64]]:
        """(n_books,) for each name of Budgets; they count once if any option needs them."""
        entries = self._books.values()
        return {
            "weight_bytes": np.array([entry.book_bytes for entry in entries], np.int64),
            "file_bytes": np.array([entry.book_file_bytes for entry in entries], np.int64),
            "nanoseconds": np.zeros(len(entries), np.int64),
        }

    @cached_property
    def book_sizes(self) -> NDArray[np.int64]:
        """(n_budgets, n_books)"""
        rows = [self._book_amounts[name] for name in self.budgets.given]
        return np.array(rows, np.int64).reshape(len(rows), len(self._books))

    def _needed(self, choice: Choice) -> NDArray[np.bool_]:
        """(n_books,)"""
        return np.asarray(self.needs[:, np.arange(len(self.units)), choice].any(axis=1))

    # -- what choices use ------------------------------------------------------------------------------------------------------------

    def steps(self, choice: Choice) -> NDArray[np.int64]:
        """(n_budgets, n_units, K): by how much each option would raise what is used, at most; codebooks that are new with it included."""
        rows = np.arange(len(self.units))
        steps = self.sizes - self.sizes[:, rows, choice][:, :, None]
        new = np.nonzero(~self._needed(choice))[0]
        return steps + np.tensordot(self.book_sizes[:, new], self.needs[new], 1)

    def used(self, choice: Choice) -> NDArray[np.int64]:
        """(n_budgets,), to be compared with `limits`."""
        total: NDArray[np.int64] = self.sizes[:, np.arange(len(self.units)), choice].sum(axis=1) + self.book_sizes @ self._needed(choice)
        return total

    def fits(self, choice: Choice) -> bool:
        return bool((self.used(choice) <= self.limits).all())

    def total(self, name: str, choice: Choice) -> int:
        """What a choice uses of what `name` in Budgets bounds; of file bytes an upper bound."""
        of_units = self.amounts[name][np.arange(len(self.units)), choice].sum()
        return self._fixed[name] + int(of_units) + int(self._book_amounts[name] @ self._needed(choice))

    def like(self, choice: Choice, *names: str) -> Budgets:
        """Budgets that `choice` just fits, of these names; of the others those that there are."""
        return replace(self.budgets, **{name: self.total(name, choice) for name in names})

    @cached_property
    def _leasts(self) -> dict[str, int]:
        return {name: self.total(name, self._min_choice(name)) for name in self.amounts}

    def minimum(self, name: str) -> int:
        """The least that any choice uses of what `name` in Budgets bounds."""
        return self._leasts[name]

    def _min_choice(self, name: str) -> Choice:
        """Whether shared codebooks pay is a matter of all that share them."""
        table = self.amounts[name]
        choice = table.argmin(axis=1)
        if self._book_amounts[name] @ self._needed(choice):
            excess = np.where(np.isfinite(self.costs), table - table.min(axis=1, keepdims=True), np.inf)
            none = np.zeros((0, *table.shape)), np.zeros((0, len(self._books))), np.zeros(0)  # no budgets
            result = choose(excess, self.needs, self._book_amounts[name].astype(float), *none)
            choice = choice if result.x is None else taken(excess, result.x)
        return choice

    @property
    def min_bits(self) -> float:
        return 8 * self.minimum("weight_bytes") / self.n_weights

    @property
    def min_bits_text(self) -> str:
        """Rounded up, so that a budget of what it says can be met."""
        return f"{math.ceil(self.min_bits * 1e4) / 1e4:.4f}"

    @property
    def max_bits(self) -> float:
        return 8 * self.total("weight_bytes", self.n_options - 1) / self.n_weights

    def cost(self, choice: Choice) -> float:
        """Sum of additive costs."""
        return math.fsum(self.costs[np.arange(len(self.units)), choice])

    def entries(self, choice: Choice) -> dict[str, Entry]:
        """What each layer gets."""
        return dict(chain.from_iterable(named[k] for named, k in zip(self._named, choice.tolist(), strict=True)))

    @cached_property
    def _named(self) -> list[list[tuple[tuple[str, Entry], ...]]]:
        """Of each unit's options, layers with their entries."""
        return [[tuple(zip(unit.names, option, strict=True)) for option in unit.options] for unit in self.units]

    def formats(self, choice: Choice) -> dict[str, Format]:
        return {name: entry.format for name, entry in self.entries(choice).items()}

    def choice_of(self, formats: Mapping[str, Format]) -> Choice:
        """The inverse of `formats`. Raises InputError where a layer has another format than its options."""
        found = []
        for unit, options in zip(self.units, self._named, strict=True):
            fitting = [k for k, option in enumerate(options) if all(entry.format == formats.get(name) for name, entry in option)]
            if not fitting:
                raise InputError(f"layer {unit.names[0]}: {formats.get(unit.names[0])} is not among the formats that it may get")
            found.append(fitting[0])
        return np.array(found, np.int64)


def _needs(book: str, unit: Unit, k: int) -> bool:
    return any(entry.book == book for entry in unit.options[k])
