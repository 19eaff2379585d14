"""Few ordered integers for many layers: how dear bytes are to each group, at the exact solver's price.

A group is what has one role in one band of depth. At a price λ and a group's factor f each unit takes the option of least

    additive cost + λ · f · share of the budgets that the option takes

which for f = 1 is the Lagrangian solution of the exact problem (Everett 1963); λ is the least that keeps the budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..models.layers import role_of
from .problem import Choice, Problem, Unit
from .repair import repair

MAX_GROUPS = 64
HALVINGS = 4  # factors go from 2^-4 to 2^4
STEPS = 2 * 2 * HALVINGS  # in half octaves
_BISECTIONS = 40  # of a range of some 40 in logarithms


def groups_of(units: Sequence[Unit], most: int = MAX_GROUPS) -> NDArray[np.int64]:
    """(n_units,) index of each unit's group: as many bands of depth as leave at most `most` groups; roles that are more than that go together."""
    roles = {role: index for index, role in enumerate(dict.fromkeys(role_of(unit.names[0]) for unit in units))}
    role = np.array([min(roles[role_of(unit.names[0])], most - 1) for unit in units])
    best = role
    for n_bands in range(2, len(units) + 1):
        pairs = role * n_bands + np.arange(len(units)) * n_bands // len(units)
        if len(np.unique(pairs)) > most:
            break
        best = pairs
    return np.asarray(np.unique(best, return_inverse=True)[1])


@dataclass(frozen=True)
class Prices:
    """Decodes integers 0 … STEPS, one a group, into choices."""

    problem: Problem
    groups: NDArray[np.int64]

    @property
    def n_variables(self) -> int:
        return int(self.groups.max()) + 1

    @cached_property
    def labels(self) -> list[str]:
        """Of each group: its first layer, and how many units go with it."""
        firsts, counts = np.unique(self.groups, return_index=True, return_counts=True)[1:]
        names = [self.problem.units[first].names[0] for first in firsts]
        return [name if n == 1 else f"{name} and {n - 1} more" for name, n in zip(names, counts, strict=True)]

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """(n_units, K) of what the budgets leave, summed over budgets; of all weights' bytes where there is none. Infinite beyond a menu's end."""
        problem = self.problem
        if len(problem.limits):
            shares = (problem.sizes / np.maximum(problem.limits, 1)[:, None, None]).sum(0)
        else:
            shares = problem.amounts["weight_bytes"] / problem.amounts["weight_bytes"][np.isfinite(problem.costs)].sum()
        return np.where(np.isfinite(problem.costs), shares, np.inf)

    @cached_property
    def log_prices(self) -> tuple[float, float]:
        """Where no unit saves any byte, and where every unit takes its cheapest, whatever its factor."""
        real = np.isfinite(self.shares[:, 1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            prices = -np.diff(self.problem.costs) / np.diff(self.shares)
        prices = prices[real & (prices > 0) & np.isfinite(prices)]
        if not len(prices):
            return 0.0, 0.0
        reach = HALVINGS * np.log(2) + 1
        return float(np.log(prices.min()) - reach), float(np.log(prices.max()) + reach)

    def at(self, values: Sequence[int], log_price: float) -> Choice:
        """The choice at one price, whatever the budgets."""
        factors = 2.0 ** ((np.asarray(values) - STEPS // 2) / 2)
        spent = np.where(np.isfinite(self.shares), np.exp(log_price) * factors[self.groups, None] * self.shares, np.inf)
        return np.asarray((self.problem.costs + spent).argmin(axis=1))

    def price_within(self, values: Sequence[int]) -> float:
        """The logarithm of the least price that keeps the budgets."""
        low, high = self.log_prices
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self.problem.fits(self.at(values, middle)):
                high = middle
            else:
                low = middle
        return high

    def within(self, values: Sequence[int], fallback: Choice) -> Choice:
        """The choice at that price; `repair` spends what is left."""
        return repair(self.problem, self.at(values, self.price_within(values)), fallback=fallback)
