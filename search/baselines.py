"""What others do for a budget, on the same encodings and at the same bytes: what a search has to beat.

Each takes a BaselineInputs and a problem whose budgets are the bytes that the uniform plan really uses, and gives a choice within them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..aq.plans.menu import Entry
from .exact import solve_exact
from .prices import STEPS, Prices
from .problem import Choice, Problem
from .repair import repair
from .uniform import uniform_choice

Cost = Callable[[str, Entry], float]
UNIFORM = "uniform"
HIGH_RATE = 8.0  # what the first and the last layer get by the rule


@dataclass(frozen=True)
class BaselineInputs:
    """What the baselines know, costs by layer and entry.

    alone: measured excess with this entry in this layer and full precision in all others; None where it was not measured.
    learnt: contribution to the target by a predictor on raw bits.
    """

    weight_error: Cost
    hessian_error: Cost
    learnt: Cost
    alone: Cost | None = None
    seed: int = 0


def knapsack(problem: Problem, cost: Cost) -> Choice:
    """The exact solution for the sum of a layer-wise error."""
    return solve_exact(problem.priced(cost))[0]


def greedy(problem: Problem, cost: Cost) -> Choice:
    """From the highest rates down, each step the one of least cost for what it saves (as MixDQ, Zhao et al. 2024, from layers measured alone)."""
    priced = problem.priced(cost)
    return repair(priced, priced.n_options - 1, fallback=solve_exact(priced)[0])


def bit_price(problem: Problem, cost: Cost) -> Choice:
    """Each unit's own best at one price of bytes, the least that keeps the budget (as Qua²SeDiMo, Mills et al. 2025, trades scores for bits).

    Where no price keeps it, which shared codebooks or two budgets may bring about, the exact solution of the same scores.
    """
    prices = Prices(problem.priced(cost), np.zeros(len(problem.units), np.int64))
    choice = prices.at([STEPS // 2], prices.price_within([STEPS // 2]))
    return choice if problem.fits(choice) else knapsack(problem, cost)


def ends_high(problem: Problem, seed: int) -> Choice:
    """The first and the last layer at HIGH_RATE bits or the next below, all others uniform; without the first where that is too dear."""
    for ends in ((0, len(problem.units) - 1), (len(problem.units) - 1,), ()):
        units = list(problem.units)
        for row in ends:
            unit, rates = units[row], [option[0].rate for option in units[row].options]
            k = int(np.argmax([rate if rate <= HIGH_RATE + 1e-9 else -1.0 for rate in rates]))
            units[row] = replace(unit, options=(unit.options[k],), costs=(unit.costs[k],))
        fixed = replace(problem, units=tuple(units))
        if all(fixed.minimum(name) <= limit for name, limit in problem.budgets.given.items()):
            choice = uniform_choice(fixed, seed=seed)
            return _translated(fixed, choice, problem)
    raise AssertionError("without ends it is the uniform plan, which fits")


def _translated(source: Problem, choice: Choice, target: Problem) -> Choice:
    """The same entries, by their places in `target`."""
    return np.array(
        [wanted.options.index(unit.options[k]) for unit, k, wanted in zip(source.units, choice, target.units, strict=True)], np.int64
    )


def random_choice(problem: Problem, seed: int, index: int) -> Choice:
    """Random options, lowered and raised at random until they fill the budget."""
    rng = np.random.default_rng([seed, index])
    noise = {unit.names[0]: np.sort(rng.random(len(unit.options)))[::-1] for unit in problem.units}
    units = tuple(replace(unit, costs=tuple(map(float, noise[unit.names[0]]))) for unit in problem.units)
    noisy = replace(problem, units=units)
    return repair(noisy, rng.integers(0, problem.n_options), fallback=solve_exact(noisy)[0])


BASELINES: Mapping[str, Callable[[Problem, BaselineInputs], Choice | None]] = {
    UNIFORM: lambda problem, inputs: uniform_choice(problem, seed=inputs.seed),
    "weight-error knapsack": lambda problem, inputs: knapsack(problem, inputs.weight_error),
    "Hessian-error knapsack": lambda problem, inputs: knapsack(problem, inputs.hessian_error),
    "one-at-a-time greedy": lambda problem, inputs: None if inputs.alone is None else greedy(problem, inputs.alone),
    "learnt scores with bit price": lambda problem, inputs: bit_price(problem, inputs.learnt),
    "first and last high": lambda problem, inputs: ends_high(problem, inputs.seed),
}


def mean_contributions(rates: NDArray[np.float64], contributions: NDArray[np.float64]) -> list[dict[float, float]]:
    """For each layer, by rate, the mean contribution over the plans that have it: what a predictor on raw bits says of a layer's rate."""
    return [
        {float(rate): float(contributions[rates[:, layer] == rate, layer].mean()) for rate in np.unique(rates[:, layer])}
        for layer in range(rates.shape[1])
    ]
