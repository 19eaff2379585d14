"""Measured effects as trees learn them: logarithms where noise allows it, and plain differences where it does not.

    y = asinh(e / 2s),    g(F) = asinh(exp(F) / 2s),    s = standard error + FLOOR

e is an effect over full precision's own distance, so that it means the same for other metrics and data; F the logarithm that is predicted. Far above s both are
logarithms less one constant; near it they are linear, so that a layer which by noise did better than full precision pulls as much to one side as another
to the other. A logarithm of e + floor would not be defined below zero, and biased above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..predictor.additive import Array

FLOOR = 1e-3  # of full precision's distance: effects below it are nothing
RESIDUAL = 0.5  # of a prediction, in logarithms: labels noisier than that weigh less
_FAR = 30.0  # beyond which a logarithm is cut off


@dataclass(frozen=True)
class Response:
    """Labels of rows of a corpus, (rows,) each.

    effects, noise: over full precision's distance. weights: of rows, of all models alike and 1 on average. groups: index of the model.
    """

    effects: Array
    noise: Array
    weights: Array
    groups: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame) -> Response:
        """Of a corpus."""
        groups = pd.factorize(table["fingerprint"])[0]
        weights = len(table) / (groups.max() + 1) / np.bincount(groups)[groups]
        distance = table["full_precision"].to_numpy(float)
        return cls(table["effect"].to_numpy(float) / distance, table["se"].to_numpy(float) / distance, weights, groups)

    def __getitem__(self, rows: Any) -> Response:
        return Response(self.effects[rows], self.noise[rows], self.weights[rows], self.groups[rows])

    @property
    def n_groups(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def scale(self) -> Array:
        """2s"""
        return 2 * (self.noise + FLOOR)

    @property
    def target(self) -> Array:
        """y"""
        return np.asarray(np.arcsinh(self.effects / self.scale))

    def of_prediction(self, logs: Array) -> Array:
        """g(F)"""
        return np.asarray(np.arcsinh(np.exp(np.clip(logs, -_FAR, _FAR)) / self.scale))

    def slope(self, logs: Array) -> Array:
        """∂g/∂F: 1 far above the noise, 0 far below it."""
        effects = np.exp(np.clip(logs, -_FAR, _FAR))
        return np.asarray(effects / np.hypot(effects, self.scale))

    def residual(self, logs: Array) -> Array:
        return self.target - self.of_prediction(logs)

    def noise_variance(self, logs: Array) -> Array:
        """Of y, by the noise of the labels."""
        effects = np.exp(np.clip(logs, -_FAR, _FAR))
        return np.asarray(self.noise**2 / (effects**2 + self.scale**2))

    def certainty(self, logs: Array) -> Array:
        """What a squared residual weighs: 1 without noise, by the prediction and not by the label, for noise that flatters is noise, too."""
        variance = RESIDUAL**2
        return variance / (variance + self.noise_variance(logs))

    def loss(self, logs: Array) -> float:
        """Mean of squared residuals, all models alike. Not weighed by certainty, which is a matter of the prediction: it could win by being too low."""
        return float(self.weights @ self.residual(logs) ** 2 / self.weights.sum())

    def objective(self, weights: Array) -> Any:
        """What xgboost minimizes: gradient and Gauss–Newton second derivative of half the weighted squared residuals."""

        def of_logs(logs: Array, _: Any) -> tuple[Array, Array]:
            logs = np.asarray(logs, dtype=float)
            slope, weight = self.slope(logs), weights * self.certainty(logs)
            return -weight * slope * self.residual(logs), np.maximum(weight * slope**2, 1e-6)

        return of_logs
