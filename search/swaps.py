"""Local improvement: change one unit, or two at once, while the score says that it helps and the budgets hold."""

from __future__ import annotations

import numpy as np

from .evaluate import Candidate, Evaluator
from .problem import Choice, Problem

_BATCH = 128
_ALL_OPTIONS = 600  # moves up to which every option of every unit is tried; above, the next option up and down


def _neighbours(problem: Problem, choice: Choice, n: int) -> list[Choice]:
    """The n choices within the budgets of least additive cost among those that differ from `choice` in one unit or two."""
    rows = np.arange(len(problem.units))
    units, options = np.nonzero(np.isfinite(problem.costs))
    moves = options != choice[units]
    if moves.sum() > _ALL_OPTIONS:
        moves = np.abs(options - choice[units]) == 1
    units, options = units[moves], options[moves]
    added = problem.costs[units, options] - problem.costs[rows, choice][units]
    steps = problem.steps(choice)[:, units, options]
    room = problem.limits - problem.used(choice)
    single = np.where((steps <= room[:, None]).all(axis=0), added, np.inf)
    pairs = np.where(units[:, None] < units[None, :], added[:, None] + added[None, :], np.inf)
    for step, left in zip(steps, room, strict=True):
        pairs[step[:, None] + step[None, :] > left] = np.inf
    totals = np.concatenate([single, pairs.ravel()])
    n = min(n, int(np.isfinite(totals).sum()))
    nearest = np.argpartition(totals, max(0, n - 1))[:n] if n < len(totals) else np.arange(len(totals))
    found = []
    for index in nearest[np.argsort(totals[nearest], kind="stable")]:
        changed = [index] if index < len(units) else list(divmod(index - len(units), len(units)))
        neighbour = choice.copy()
        neighbour[units[changed]] = options[changed]
        found.append(neighbour)
    return found


def improve(evaluator: Evaluator, start: Candidate, *, n_neighbours: int = 512, n_predictions: int | None = None) -> Candidate:
    """The candidate that swaps reach from `start`; never one of worse score.

    In each round neighbours are predicted in batches, by ascending additive cost; the best of the first batch that holds a better one is
    the start of the next round. It ends at a local optimum, or after `n_predictions` (None: as many as hold a million layers, seconds).
    """
    best, left = start, n_predictions or max(_BATCH, 1_000_000 // len(evaluator.problem.units))
    while left > 0:
        neighbours = _neighbours(evaluator.problem, np.array(best.choice), n_neighbours)
        for first in range(0, len(neighbours), _BATCH):
            left -= _BATCH
            batch = evaluator(neighbours[first : first + _BATCH], f"{start.found_by}+swaps")
            better = min(batch, key=lambda candidate: candidate.score)
            if better.score < best.score:
                best = better
                break
        else:
            return best
    return best
