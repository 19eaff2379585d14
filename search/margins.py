"""Layers whose choice hangs on less than the predictor knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..aq.menu import Entry
from .prices import STEPS, Prices
from .problem import Choice, Problem

CostsOf = Callable[[str, Entry], NDArray[np.float64]]  # layer, entry → additive cost by each member of an ensemble


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
