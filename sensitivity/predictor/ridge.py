"""How strongly the additive model is pulled to its priors, chosen by probes that a fit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .additive import RESIDUAL, RIDGES, Additive, Labels, WarmStart, fit_from
from .layer_priors import Array, LayerPriors

FOLDS = 3
FEW = 12  # probes, below which they cannot choose a ridge
STEPS_TO_CHOOSE = 300  # of L-BFGS while ridges are compared


@dataclass(frozen=True)
class HeldOut:
    """The ridge that held-out probes chose, and the additive models fitted with it without each fold.

    fold: (probes,) of each probe; residual: root of the weighted mean squared residual on the held-out folds; warm_start: where other fits may begin.
    """

    ridge: float
    fold: NDArray[np.int64]
    surrogates: Sequence[Additive]
    residual: float
    warm_start: WarmStart


def usual_ridge(priors: LayerPriors) -> float:
    """The pull with which layers deviate from their priors by their learnt widths; the middle of RIDGES where nothing is learnt."""
    return RIDGES[1] if priors.learnt is None else float((RESIDUAL / priors.learnt.widths.mean()) ** 2)


def choose_ridge(errors: Array, labels: Labels, priors: LayerPriors, seed: int) -> HeldOut:
    """The ridge of least weighted squared residual on held-out thirds. The strongest is fitted first; others start near what it found.

    Fewer than FEW probes cannot choose: they take the one that the learnt widths stand for, or else the middle one.
    """
    fold = np.random.default_rng(seed).permutation(len(errors)) % FOLDS
    tried, warm_start = [], None
    for ridge in sorted(RIDGES, reverse=True) if len(errors) >= FEW else [usual_ridge(priors)]:
        surrogates, residuals = [], np.empty(len(errors))
        for k in range(FOLDS):
            rows = fold != k
            surrogate, found = fit_from(errors[rows], labels[rows], priors, ridge, warm_start, STEPS_TO_CHOOSE)
            warm_start = warm_start or found
            surrogates.append(surrogate)
            residuals[~rows] = np.log(surrogate.excess(errors[~rows]) + labels.floor) - labels.target[~rows]
        residual = float((labels.weights @ residuals**2) / labels.weights.sum()) ** 0.5
        tried.append(HeldOut(ridge, fold, surrogates, residual, found))
        warm_start = found
    return min(tried, key=lambda held_out: held_out.residual)
