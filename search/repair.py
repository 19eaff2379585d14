"""Bring any choice within the budgets, and spend what is left: the decoder of the black-box solvers."""

from __future__ import annotations

import numpy as np

from .problem import Choice, Problem


def repair(problem: Problem, choice: Choice, *, fallback: Choice) -> Choice:
    """The choice within every budget that greedy steps by additive cost reach from `choice`.

    First steps down, each time the one with the least additive cost for what it takes off the excess; then steps that lower the additive
    cost, each time the one with the most for its bytes. Under two budgets steps down may get stuck; then `fallback`, which fits, is
    returned.
    """
    lowered = _lower(problem, choice)
    return fallback.copy() if lowered is None else _spend(problem, lowered)


def _lower(problem: Problem, choice: Choice) -> Choice | None:
    choice, rows = choice.copy(), np.arange(len(problem.units))
    scale = 1 / np.maximum(problem.limits, 1)[:, None, None]
    while not problem.fits(choice):
        now = problem.used(choice)[:, None, None]
        after = now + problem.steps(choice)
        excess = ((now - problem.limits[:, None, None]).clip(min=0) * scale).sum()
        saved = excess - ((after - problem.limits[:, None, None]).clip(min=0) * scale).sum(axis=0)
        added = problem.costs - problem.costs[rows, choice][:, None]
        price = np.where(saved > 0, added / np.where(saved > 0, saved, 1), np.inf)
        unit, option = np.unravel_index(np.argmin(price), price.shape)
        if not np.isfinite(price[unit, option]):
            return None
        choice[unit] = option
    return choice


def _spend(problem: Problem, choice: Choice) -> Choice:
    rows = np.arange(len(problem.units))
    scale = 1 / np.maximum(problem.limits, 1)[:, None, None]
    while True:
        step = problem.steps(choice)
        gain = problem.costs[rows, choice][:, None] - problem.costs
        possible = (gain > 0) & (problem.used(choice)[:, None, None] + step <= problem.limits[:, None, None]).all(axis=0)
        if not possible.any():
            return choice
        weight = np.maximum((step * scale).sum(axis=0), 1e-12)  # a gain that costs no bytes comes first
        unit, option = np.unravel_index(np.argmax(np.where(possible, gain / weight, -np.inf)), gain.shape)
        choice[unit] = option
