"""What the predictor leaves open: layers whose choice hangs on less than it knows, and plans that would be best if it erred as it may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..aq.plans.menu import Entry
from .exact import solve_exact
from .prices import STEPS, Prices
from .problem import Choice, Problem

CostsOf = Callable[[str, Entry], NDArray[np.float64]]  # layer, entry → additive cost by each member of an ensemble


def optima(problem: Problem, costs_of: CostsOf) -> list[Choice]:
    """The exact solution for each member of the ensemble, distinct: plans that are each the best with the probability that it is (Thompson 1933).

    Between them lie the choices that the probes leave open, which measuring a few such plans settles; plans next in score to the best mostly
    differ from it in what hardly matters.
    """

    def of_member(member: int) -> Callable[[str, Entry], float]:
        return lambda name, entry: float(costs_of(name, entry)[member])

    unit = problem.units[0]
    n_members = len(costs_of(unit.names[0], unit.options[0][0]))
    solved = [solve_exact(problem.priced(of_member(member)))[0] for member in range(n_members)]
    return [np.array(choice) for choice in dict.fromkeys(tuple(map(int, choice)) for choice in solved)]


def undecided(problem: Problem, choice: Choice, costs_of: CostsOf) -> list[dict[str, Any]]:
    """Units that another option would suit as well within one standard error, each with that option, the closest call first.

    At the price of bytes λ of the additive solution, option k instead of c costs Δ = t_k − t_c + λ (s_k − s_c), never much below zero for the
    c that was chosen. It is a close call where Δ, of either sign, is at most the deviation of t_k − t_c over the ensemble.

    Returns:
        {layers, takes, or, margin}: margin = |Δ| over that deviation.
    """
    prices = Prices(problem, np.zeros(len(problem.units), np.int64))
    price = np.exp(prices.price_within([STEPS // 2])) if len(problem.limits) else 0.0
    found = []
    for row, (unit, taken) in enumerate(zip(problem.units, choice, strict=True)):
        if len(unit.options) == 1:
            continue
        members = np.array([sum(costs_of(name, entry) for name, entry in zip(unit.names, option, strict=True)) for option in unit.options])
        shares = prices.shares[row, : len(unit.options)]
        rise = (members - members[taken]).mean(1) + price * (shares - shares[taken])
        spread = (members - members[taken]).std(1)
        spread[taken] = 0
        with np.errstate(divide="ignore", invalid="ignore"):
            margin = np.where(spread > 0, np.abs(rise) / spread, np.inf)
        other = int(margin.argmin())
        if margin[other] <= 1:
            formats = [str(unit.options[k][0].format) for k in (int(taken), other)]
            found.append({"layers": list(unit.names), "takes": formats[0], "or": formats[1], "margin": float(margin[other])})
    return sorted(found, key=lambda row: row["margin"])
