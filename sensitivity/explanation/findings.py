"""Sentences that a reader can act on, each generated from the explanation's numbers and only where their intervals say something."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .explanation import Explanation, bounds

MANY_BITS = 4.0
MIN_ORDER = 0.3  # rank correlation on held-out probes, below which layers are not spoken of
CLEAR = 3.0  # times what no probe could tell from nothing: less is no finding
BEARABLE = 0.25  # of the metric at full precision: what a role may cost before it is one to keep


def findings(explanation: Explanation, metric: str, order: Sequence[float]) -> list[str]:
    """Every sentence with its 95 % interval; none where the interval says nothing.

    Args:
        order: interval of the rank correlation on held-out probes. An additive model has a slope for every layer even where it orders nothing; then nothing
            is said.
    """
    if order[0] < MIN_ORDER:
        return []
    return [*_concentrated(explanation, metric), *_to_keep(explanation, metric), *_to_lower(explanation, metric), *_adding_up(explanation)]


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{_number(value)} ({_number(low)} to {_number(high)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _concentrated(explanation: Explanation, metric: str) -> list[str]:
    """The few layers that make most of the harm of the lowest uniform plan."""
    table, rate = explanation.probes.table, explanation.rates[0]
    places = [explanation.at(index, rate) for index in range(len(table.names))]
    terms = explanation.terms[:, np.arange(len(places)), places]
    shares = terms / terms.sum(1, keepdims=True)
    order = np.argsort(-shares[0], kind="stable")
    few = order[: int(np.searchsorted(np.cumsum(shares[0][order]), 0.5)) + 1]
    share, low, high = bounds(shares[:, few].sum(1))
    if len(few) > max(1, len(places) // 4) or low <= 2 * len(few) / len(places):
        return []
    everything = explanation.cost(list(enumerate(places)))
    kept = [(i, explanation.at(i, MANY_BITS) if i in few else place) for i, place in enumerate(places)]
    before, after = bounds(everything), bounds(explanation.cost(kept))
    gain = (
        f"; with {MANY_BITS:g} bits {'there' if len(few) == 1 else 'in them'} that plan costs {_interval(*after)} {metric} instead of {_interval(*before)}"
        if after[2] < before[1]
        else ""
    )
    names = [table.names[i] for i in few]
    verb = "makes" if len(few) == 1 else "make"
    return [
        f"{_listed(names)} {verb} {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f} %) of the harm at {rate:g} bits everywhere{gain}."
    ]


def _roles(explanation: Explanation) -> dict[str, list[int]]:
    roles: dict[str, list[int]] = {}
    for index, role in enumerate(explanation.probes.table.roles):
        roles.setdefault(role, []).append(index)
    return roles


def _to_keep(explanation: Explanation, metric: str) -> list[str]:
    """Roles that clearly cost too much at the lowest rate, the costliest first, with the least rate at which they surely do not."""
    probes, rates = explanation.probes, explanation.rates
    bearable = max(CLEAR * probes.labels.floor, BEARABLE * abs(probes.full_precision))
    found = []
    for role, members in _roles(explanation).items():
        costs = {rate: bounds(explanation.cost([(i, explanation.at(i, rate)) for i in members])) for rate in rates}
        if costs[rates[0]][1] < bearable:
            continue
        enough = next((rate for rate in rates if costs[rate][2] < bearable), None)
        said = f"{role}: {rates[0]:g} bits cost {_interval(*costs[rates[0]])} {metric}"
        if enough is not None:
            said += f", {enough:g} bits {_interval(*costs[enough])}: keep at {enough:g} bits or more."
        elif costs[rates[-1]][1] >= bearable:
            said += f", and {rates[-1]:g} bits still {_interval(*costs[rates[-1]])}: keep at 8 bits or as it is."
        else:
            continue
        found.append((costs[rates[0]][0], said))
    return [sentence for _, sentence in sorted(found, key=lambda pair: -pair[0])]


def _to_lower(explanation: Explanation, metric: str) -> list[str]:
    """Blocks of a role that together may have the lowest rate for less than noise; the largest parts of the model first."""
    small, lowest = explanation.probes.labels.floor, explanation.rates[0]
    found = []
    for role, members in _roles(explanation).items():
        ordered = sorted(members, key=lambda i: explanation.terms[0, i, explanation.at(i, lowest)])
        chosen: list[int] = []
        for index in ordered:
            if bounds(explanation.cost([(i, explanation.at(i, lowest)) for i in [*chosen, index]]))[2] >= small:
                break
            chosen.append(index)
        if chosen:
            high = bounds(explanation.cost([(i, explanation.at(i, lowest)) for i in chosen]))[2]
            where = "" if len(chosen) == len(members) else f" of {_places(explanation, sorted(chosen))}"
            found.append((len(chosen), f"{role}{where}: {lowest:g} bits cost less than {_number(max(high, 0.01))} {metric} (95 %)."))
    return [sentence for _, sentence in sorted(found, key=lambda pair: -pair[0])]


def _places(explanation: Explanation, chosen: Sequence[int]) -> str:
    """ "blocks 1, 2 and 5" where all are in blocks of one list, else the layers' names."""
    table = explanation.probes.table
    numbered = [re.fullmatch(r"(\w+)\.(\d+)", table.blocks[i]) for i in chosen]
    if not all(numbered) or len({match[1] for match in numbered if match}) > 1:
        return _listed([table.names[i] for i in chosen])
    numbers = sorted({int(match[2]) for match in numbered if match})
    consecutive = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
    text = f"{numbers[0]} to {numbers[-1]}" if consecutive else _listed([str(n) for n in numbers])
    return f"block{'s' if len(numbers) > 1 else ''} {text}"


def _adding_up(explanation: Explanation) -> list[str]:
    ratio, low, high = bounds(explanation.together_over_apart)
    times = f"{_interval(ratio, low, high)} times what they cost apart"
    if low > 1.05:
        return [f"All layers at their lowest rates cost {times}: what a layer costs alone understates its part in plans of few bits."]
    if high < 0.95:
        return [f"All layers at their lowest rates cost {times}: what a layer costs alone overstates its part in plans of few bits."]
    return []
