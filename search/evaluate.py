"""The predictor as solvers use it: batched, each choice once, the best remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..aq.plans.menu import Entry
from .config import RISK
from .problem import Choice, Problem


class Predictor(Protocol):
    """What a search needs of a predictor. The target's unit is the metric's; lower is better."""

    @property
    def metric(self) -> str: ...

    def additive_cost(self, name: str, entry: Entry) -> float: ...

    def member_costs(self, name: str, entry: Entry) -> np.ndarray:
        """By each member of an ensemble; additive_cost is their mean."""

    def predict(self, choices: Sequence[Mapping[str, Entry]]) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Candidate:
    """A choice within the budgets, and what is predicted for it: mean, standard deviation, and score = mean + risk · std, by which choices
    are compared. `found_by` names the stage that came upon it first."""

    choice: tuple[int, ...]
    mean: float
    std: float
    score: float
    found_by: str


class Evaluator:
    """Predicts choices of one problem; every choice given must be within the budgets, for `best` hands out what it has seen."""

    def __init__(self, problem: Problem, predictor: Predictor, risk: float = RISK) -> None:
        self.problem, self.predictor, self.risk = problem, predictor, risk
        self.seen: dict[tuple[int, ...], Candidate] = {}

    def __call__(self, choices: Sequence[Choice], found_by: str) -> list[Candidate]:
        """Candidates in the order given; unknown ones are predicted in one call."""
        keys = [tuple(int(k) for k in choice) for choice in choices]
        new = [key for key in dict.fromkeys(keys) if key not in self.seen]
        if new:
            means, stds = self.predictor.predict([self.problem.entries(np.array(key)) for key in new])
            for key, mean, std in zip(new, means, stds, strict=True):
                self.seen[key] = Candidate(key, float(mean), float(std), float(mean + self.risk * std), found_by)
        return [self.seen[key] for key in keys]

    def best(self, n: int = 1) -> list[Candidate]:
        """The n of least score, the best first; of equals the one that was found first."""
        return sorted(self.seen.values(), key=lambda candidate: candidate.score)[:n]
