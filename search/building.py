"""From a subject and the menus of its layers to the decisions of a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..aq.activations.quantizer import Activation
from ..aq.plans.menu import Entry, header_bytes, model_bytes
from ..aq.plans.plan import activation_specs
from ..aq.profiling.step_times import StepTimes
from ..errors import InputError, SedaqError
from ..models.subject import Subject
from .problem import Problem, Unit

_HEADER_BYTES = 8 + len('{"__metadata__":{"format":"pt"}}') + 7  # its length, what it says beside tensors, its padding at most


def _fixed_file_bytes(subject: Subject, menus: Mapping[str, Sequence[Entry]], activations: Mapping[str, Activation]) -> int:
    """Bytes of the file, at most, that no entry of a menu counts."""
    weights = {f"{name}.weight" for name in menus}
    specs = {name: spec for name, spec in subject.tensor_specs.items() if name not in weights} | activation_specs(activations)
    payload, whole = sum(dtype.itemsize * math.prod(shape) for dtype, shape in specs.values()), model_bytes(subject)
    # A pin may weigh more than the weight as it is; then offsets can have more digits than entries counted, in at most 4 tensors a layer.
    heaviest = payload + sum(max(entry.size_bytes + entry.book_bytes for entry in menu) for menu in menus.values())
    digits = max(0, len(str(heaviest)) - len(str(whole)))
    return payload + header_bytes(specs, whole) + _HEADER_BYTES + 2 * digits * (len(specs) + 4 * len(menus))


def _unit(
    names: tuple[str, ...], menus: Mapping[str, Sequence[Entry]], cost: Callable[[str, Entry], float], times: StepTimes | None
) -> Unit:
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
    nanoseconds = () if times is None else tuple(sum(map(times.of, names, [e.format for e in row])) for row in options)
    return Unit(names, options, costs, nanoseconds)


def build_problem(
    subject: Subject,
    menus: Mapping[str, Sequence[Entry]],
    cost: Callable[[str, Entry], float],
    *,
    ties: Sequence[tuple[str, ...]] = (),
    times: StepTimes | None = None,
    activations: Mapping[str, Activation] | None = None,
) -> Problem:
    """The search for a plan of `subject`, without a budget.

    Args:
        menus: entries that each eligible layer may take, by ascending size.
        cost: additive cost of giving a layer an entry, in units of the target, lower is better.
        ties: disjoint groups of layers that choose by equal rate.
        times: what layers take of a sampling step; None: no budget of time can be given.
        activations: how inputs are rounded, for the bytes of their ranges.

    Raises:
        InputError: ties without a common rate.
    """
    group_of = {name: group for group in ties for name in group}
    groups = dict.fromkeys(group_of.get(layer.name, (layer.name,)) for layer in subject.layers)
    units = tuple(_unit(group, menus, cost, times) for group in groups)
    n_weights = sum(layer.n_weights for layer in subject.layers)
    return Problem(units, n_weights, _fixed_file_bytes(subject, menus, activations or {}), 0 if times is None else times.rest)
