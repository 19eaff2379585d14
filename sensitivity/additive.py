"""The additive part of the predictor: what layers' errors do to the Fréchet distance, before trees.

    excess = (Σ_l t_l)^r,    t_l = exp(θ_l + p_l (log e_l − ē_l))

excess is the distance above full precision's on the same noise, e_l the relative output error of layer l's encoding under its Hessian, ē_l the
mean of its logarithm over the layer's menu. θ_l says how sensitive the layer is, p_l how steeply its harm falls with its error, r how errors of
several layers add up: distances would add if r were 1, deviations of images if it were 2.

Fitted by penalized least squares in log(excess + floor), by L-BFGS: plans that are nearly lossless count as much as ruined ones. With more layers
than probes the priors carry: θ_l ~ b + q · log(gradient score), p_l ~ a common p; b, q, p and r are fitted too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

RIDGES = (0.03, 0.3, 3.0)  # pull of θ_l to its prior, in units of squared residuals
EXPONENT_RIDGE = 1.0  # pull of p_l to the common p
PRIOR_EXPONENT, PRIOR_POWER = 1.5, 1.0
MISFIT = 0.1  # of the law itself, in log(excess + floor): labels noisier than that weigh less
FOLDS = 5
_TINY = 1e-12


@dataclass(frozen=True)
class LayerPriors:
    """What the fit knows of layers beforehand, (layers,) each."""

    log_errors: Array  # ē_l
    log_scores: Array  # mean log gradient score over the menu

    @classmethod
    def of(cls, errors: Sequence[Array], scores: Sequence[Array]) -> LayerPriors:
        """From the errors and scores of each layer's menu. A layer without error gets the least of the others."""
        return cls(_mean_logs(errors), _mean_logs(scores))


def _mean_logs(values: Sequence[Array]) -> Array:
    means = np.array([np.log(v[v > 0]).mean() if (v > 0).any() else np.nan for v in values])
    return np.where(np.isfinite(means), means, np.nanmin(means) if np.isfinite(means).any() else 0.0)


@dataclass(frozen=True)
class Labels:
    """What probes measured, (probes,) each.

    floor: the excess below which noise hides differences; targets are log(excess + floor).
    """

    excess: Array
    se: Array
    floor: float

    @classmethod
    def of(cls, excess: Array, se: Array) -> Labels:
        """The floor is the median standard error of the third of the probes that lost least."""
        best = np.argsort(excess, kind="stable")[: max(1, len(excess) // 3)]
        return cls(excess, se, max(float(np.median(se[best])), 1e-3 * float(np.median(np.abs(excess))), _TINY))

    @property
    def target(self) -> Array:
        """log(excess + floor); what noise made less than full precision ends at a third of the floor."""
        return np.log(np.maximum(self.excess + self.floor, self.floor / 3))

    @property
    def weights(self) -> Array:
        """1 for a label without noise, less for one whose noise exceeds the law's own misfit."""
        noise = self.se / np.maximum(self.excess + self.floor, self.floor)
        return 1 / (1 + (noise / MISFIT) ** 2)

    def __getitem__(self, rows: Any) -> Labels:
        return Labels(self.excess[rows], self.se[rows], self.floor)


@dataclass(frozen=True)
class Additive:
    """A fitted law; parameters as in the formula above, log_errors is ē."""

    log_slopes: Array  # θ
    exponents: Array  # p
    power: float  # r
    log_errors: Array

    def terms(self, errors: Array) -> Array:
        """t_l, of the shape of errors (…, layers); a layer without error has none."""
        logs = np.log(np.where(errors > 0, errors, 1.0)) - self.log_errors
        return np.where(errors > 0, np.exp(np.clip(self.log_slopes + self.exponents * logs, -60, 60)), 0.0)

    def excess(self, errors: Array) -> Array:
        """(…, layers) → (…,)"""
        return np.asarray(self.terms(errors).sum(-1) ** self.power)


class _Objective:
    """Penalized half squared residuals and their gradient. Parameters: θ (L), p (L), b, q, log r, common p."""

    def __init__(self, errors: Array, labels: Labels, priors: LayerPriors, ridge: float) -> None:
        self.n_layers = errors.shape[1]
        self.present = errors > 0
        self.logs = np.where(self.present, np.log(np.where(self.present, errors, 1.0)) - priors.log_errors, 0.0)
        self.labels, self.scores, self.ridge = labels, priors.log_scores - priors.log_scores.mean(), ridge
        self.target, self.weights = labels.target, labels.weights

    def start(self) -> Array:
        """Every layer in proportion to the root of its score, at the probes' median."""
        slopes = 0.5 * self.scores
        level = np.log(np.median(np.exp(self.target))) - np.log(np.exp(slopes).sum())
        n = self.n_layers
        return np.concatenate([slopes + level, np.full(n, PRIOR_EXPONENT), [level, 0.5, np.log(PRIOR_POWER), PRIOR_EXPONENT]])

    def __call__(self, z: Array) -> tuple[float, Array]:
        n = self.n_layers
        theta, p, (b, q, log_r, common) = z[:n], z[n : 2 * n], z[2 * n :]
        terms = np.where(self.present, np.exp(np.clip(theta + p * self.logs, -60, 60)), 0.0)
        total, r = terms.sum(1) + _TINY, np.exp(log_r)
        with np.errstate(over="ignore"):
            excess = np.minimum(total**r, 1e30)
        residual = np.log(excess + self.labels.floor) - self.target
        off, spread = theta - b - q * self.scores, p - common
        loss = 0.5 * (self.weights @ residual**2 + self.ridge * off @ off + EXPONENT_RIDGE * spread @ spread)
        loss += 0.5 * ((log_r - np.log(PRIOR_POWER)) ** 2 + (common - PRIOR_EXPONENT) ** 2)
        outer = self.weights * residual * excess / (excess + self.labels.floor)  # ∂loss/∂log excess
        inner = terms * (outer * r / total)[:, None]
        gradient = np.concatenate(
            [
                inner.sum(0) + self.ridge * off,
                (inner * self.logs).sum(0) + EXPONENT_RIDGE * spread,
                [
                    -self.ridge * off.sum(),
                    -self.ridge * off @ self.scores,
                    outer @ np.log(total) * r + log_r - np.log(PRIOR_POWER),
                    -EXPONENT_RIDGE * spread.sum() + common - PRIOR_EXPONENT,
                ],
            ]
        )
        return float(loss), gradient


def fit_additive(errors: Array, labels: Labels, priors: LayerPriors, ridge: float) -> Additive:
    """Fit to probes: errors (probes, layers)."""
    objective = _Objective(errors, labels, priors, ridge)
    n = objective.n_layers
    bounds = [(None, None)] * n + [(0.0, None)] * n + [(None, None)] * 2 + [(-2.0, 2.0), (0.0, None)]
    found = minimize(objective, objective.start(), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000, "maxcor": 20})
    return Additive(found.x[:n], found.x[n : 2 * n], float(np.exp(found.x[2 * n + 2])), priors.log_errors)


def choose_ridge(errors: Array, labels: Labels, priors: LayerPriors, seed: int) -> tuple[float, float]:
    """The ridge of least weighted squared residual on held-out fifths, and that residual's root mean square."""
    fold = np.random.default_rng(seed).permutation(len(errors)) % FOLDS
    losses = {}
    for ridge in RIDGES:
        residual = np.empty(len(errors))
        for k in range(FOLDS):
            fitted = fit_additive(errors[fold != k], labels[fold != k], priors, ridge)
            residual[fold == k] = np.log(fitted.excess(errors[fold == k]) + labels.floor) - labels.target[fold == k]
        losses[ridge] = float((labels.weights @ residual**2) / labels.weights.sum())
    best = min(losses, key=losses.__getitem__)
    return best, losses[best] ** 0.5
