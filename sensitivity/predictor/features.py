"""What the trees see of a plan, and how what they say of it is shared out among layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .additive import Array

_TINY = 1e-6  # added before logarithms: of errors, and of sums of the additive part's terms


@dataclass(frozen=True)
class TreeFeatures:
    """Rate and log error of every layer; logarithms of sums of the additive part's terms by role, by block, and weighted by the layer's position
    from the start and from the end. All are monotone: more bits or less error never predict worse.

    roles, blocks: of each layer, in the order of all arrays.
    """

    roles: Sequence[str]
    blocks: Sequence[str]

    @cached_property
    def sums(self) -> Array:
        """(layers, sums) how much of each layer's term is in each sum."""
        position = np.linspace(0, 1, len(self.roles))
        columns = [[float(label == other) for label in labels] for labels in (self.roles, self.blocks) for other in sorted(set(labels))]
        return np.array([*columns, position, 1 - position]).T

    @property
    def monotone(self) -> tuple[int, ...]:
        n_layers, n_sums = self.sums.shape
        return (-1,) * n_layers + (1,) * (n_layers + n_sums)

    @property
    def weights(self) -> Array:
        """How often trees look at each: rates, errors and sums alike, for layers may be hundreds and sums few."""
        n_layers, n_sums = self.sums.shape
        return np.concatenate([np.full(2 * n_layers, 1 / n_layers), np.full(n_sums, 1 / n_sums)])

    def __call__(self, rates: Array, errors: Array, terms: Array) -> Array:
        """(n, layers) each → (n, features)"""
        return np.hstack([rates, np.log(errors + _TINY), np.log(terms @ self.sums + _TINY)])

    def by_layer(self, contributions: Array, terms: Array) -> Array:
        """(n, features) → (n, layers): a sum's contribution goes to its layers by their parts of it; nothing is lost."""
        n_layers = len(self.roles)
        parts = terms[:, :, None] * self.sums + _TINY * self.sums
        parts /= parts.sum(1, keepdims=True)
        of_sums = np.einsum("nls,ns->nl", parts, contributions[:, 2 * n_layers :])
        return contributions[:, :n_layers] + contributions[:, n_layers : 2 * n_layers] + of_sums
