"""Designs of probing: which plans are measured, in which order. A shorter design is the beginning of a longer one.

"stratified" draws plans at random, as Qua²SeDiMo (Mills et al. 2025) does; the others lower one thing at a time and leave the rest as it is, as
sensitivity is measured elsewhere (MixDQ): one layer, all layers of one role, all layers of one block. These see no interaction, and their distances are small
against their noise, but each says of one thing what it costs alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
from scipy.stats.qmc import Halton

from ...aq.formats import Format
from ...aq.plans.menu import Entry
from ...errors import InputError
from ...models.layers import Layer

AUTO = "auto"  # adaptive.py: what it asks for depends on what was measured
DRAWS_PER_PLAN = 20  # before a model is taken to have no more plans

Menus = Mapping[str, Sequence[Entry]]
Plan = dict[str, Format]


def design_plans(design: str, layers: Sequence[Layer], menus: Menus, *, n_plans: int, seed: int) -> list[Plan]:
    """The first `n_plans` of a design, none of them twice; fewer where it has no more."""
    found: dict[tuple[Format, ...], Plan] = {}
    for plan in DESIGNS[design](layers, menus, n_plans, seed):
        found.setdefault(tuple(plan.values()), plan)
        if len(found) == n_plans:
            break
    return list(found.values())


def check_design(design: str) -> None:
    if design not in (AUTO, *DESIGNS):
        raise InputError(f"`design` {design!r} is unknown; choose one of {', '.join((AUTO, *DESIGNS))}")


def at_rate(menu: Sequence[Entry], rate: float) -> Format:
    """The best format within a rate, or the cheapest there is."""
    return max((e for e in menu if e.rate <= rate), key=lambda e: e.rate, default=menu[0]).format


def rates_of(menus: Menus) -> list[float]:
    """Those that any menu has, ascending: a uniform plan for each."""
    return sorted({e.rate for menu in menus.values() for e in menu})


def stratified(layers: Sequence[Layer], menus: Menus, n_plans: int, seed: int) -> Iterator[Plan]:
    """Uniform plans first, one for each rate, full precision among them; then random ones.

    A random plan first draws the share of layers that get few bits, stratified over 0 … 1 by a van der Corput sequence, then for each layer
    an entry from the lower or the upper half of its menu (Qua²SeDiMo's two-stage draw).
    """
    for rate in rates_of(menus):
        yield {name: at_rate(menu, rate) for name, menu in menus.items()}
    n_draws = DRAWS_PER_PLAN * n_plans
    _, *low_shares = Halton(1, scramble=False).random(1 + n_draws)[:, 0]  # in base 2; the first is 0
    for index, low_share in enumerate(low_shares):
        rng = np.random.default_rng([seed, index])
        plan = {}
        for name, menu in menus.items():
            half = max(1, len(menu) // 2)
            options = menu[:half] if rng.random() < low_share else menu[half:] or menu
            plan[name] = options[int(rng.integers(len(options)))].format
        yield plan


def _one_at_a_time(key: Callable[[Layer], Hashable]) -> Design:
    """Full precision; then at the lowest rate every set of layers of equal key alone, in an order drawn by the seed; then at the next rate."""

    def plans(layers: Sequence[Layer], menus: Menus, n_plans: int, seed: int) -> Iterator[Plan]:
        as_is = {name: menu[-1].format for name, menu in menus.items()}
        sets: dict[Hashable, list[str]] = {}
        for layer in layers:
            sets.setdefault(key(layer), []).append(layer.name)
        order = np.random.default_rng(seed).permutation(len(sets))
        shuffled = [list(sets.values())[i] for i in order]
        yield as_is
        for rate, names in itertools.product(rates_of(menus), shuffled):
            yield as_is | {name: at_rate(menus[name], rate) for name in names}

    return plans


Design = Callable[[Sequence[Layer], Menus, int, int], Iterator[Plan]]  # layers, menus, how many are wanted, seed
DESIGNS: dict[str, Design] = {
    "stratified": stratified,
    "layer": _one_at_a_time(lambda layer: layer.name),
    "role": _one_at_a_time(lambda layer: layer.role),
    "block": _one_at_a_time(lambda layer: layer.block),
}
