"""Uniform plans: what a search has to beat at equal bytes."""

from __future__ import annotations

import numpy as np

from .exact import solve_exact
from .problem import Choice, Problem
from .repair import repair

N_ORDERS = 5


def at_rate(problem: Problem, rate: float) -> Choice:
    """Every unit at its highest rate within `rate`; one that has none takes its cheapest.

    Options ascend by bytes; where codebooks are shared, which are not in them, that need not be the order of rates.
    """
    return np.where(problem.rates <= rate, problem.rates, -np.inf).argmax(axis=1)


def uniform_choice(problem: Problem, *, seed: int = 0, order: int = 0) -> Choice:
    """Every unit at the highest rate that fits; bytes left raise units to the next rate, in pseudo-random order, where they still fit.

    Source: DESIGN's definition. Each of the N_ORDERS orders is a permutation that depends on (seed, order) alone, so under one budget more
    bytes never give a uniform plan with fewer. Where a budget is so tight that not even the lowest rate fits (header entries can make a
    small layer's weight as it is the cheapest), layers step down as in `repair`.
    """
    rates = np.unique(problem.rates[np.isfinite(problem.rates)])
    fitting = [index for index, rate in enumerate(rates) if problem.fits(at_rate(problem, rate))]
    if not fitting:
        return repair(problem, at_rate(problem, rates[0]), fallback=solve_exact(problem)[0])
    choice = at_rate(problem, rates[fitting[-1]])
    if fitting[-1] + 1 == len(rates):
        return choice
    target = at_rate(problem, rates[fitting[-1] + 1])
    for unit in np.random.default_rng([seed, order]).permutation(len(problem.units)):
        raised = choice.copy()
        raised[unit] = target[unit]
        if problem.fits(raised):
            choice = raised
    return choice


def uniform_choices(problem: Problem, *, seed: int = 0) -> list[Choice]:
    """The uniform plans of all orders."""
    return [uniform_choice(problem, seed=seed, order=order) for order in range(N_ORDERS)]
