"""Where the trees start: straight in the logarithms of gradient score and error, for trees cannot go on beyond what they have seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from ..predictor.additive import Array
from .response import Response


@dataclass(frozen=True)
class Line:
    """F = level + by_score · log score + by_error · log error; of layers without a score another level and slope. No slope is negative."""

    level: float
    by_score: float
    by_error: float
    level_alone: float
    by_error_alone: float

    @classmethod
    def fit(cls, log_errors: Array, log_scores: Array, response: Response, weights: Array) -> Line:
        """By least squares of the response's residuals. Rows without a score, and where there are none, all rows, make the part without."""
        known = np.isfinite(log_scores)
        level, by_score, by_error = _fitted(np.stack([log_scores, log_errors]), response, weights, known if known.any() else ~known)
        alone = ~known if (~known).any() else known
        return cls(level, by_score, by_error, *_fitted(log_errors[None], response, weights, alone))

    def __call__(self, log_errors: Array, log_scores: Array) -> Array:
        return np.asarray(self.parts(log_errors, log_scores).sum(0) + self.levels(log_scores))

    def levels(self, log_scores: Array) -> Array:
        return np.where(np.isfinite(log_scores), self.level, self.level_alone)

    def parts(self, log_errors: Array, log_scores: Array) -> Array:
        """(2, rows) what the error and the score add."""
        known = np.isfinite(log_scores)
        by_error = np.where(known, self.by_error, self.by_error_alone)
        return np.stack([by_error * log_errors, np.where(known, self.by_score * np.where(known, log_scores, 0.0), 0.0)])

    def to_json(self) -> dict[str, float]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Line:
        return cls(**{name: float(content[name]) for name in cls.__dataclass_fields__})


def _fitted(columns: Array, response: Response, weights: Array, rows: Array) -> tuple[float, ...]:
    """Level and slopes. Columns are those of known values only, of which `rows` tells."""
    x, own, root = np.where(np.isfinite(columns), columns, 0.0)[:, rows], response[rows], np.sqrt(weights[rows])
    center = x.mean(1, keepdims=True)

    def residuals(parameters: Array) -> Array:
        logs = parameters[0] + parameters[1:] @ (x - center)
        return np.asarray(root * np.sqrt(own.certainty(logs)) * own.residual(logs))

    clear = own.effects > 2 * own.noise
    start = float(np.median(np.log(own.effects[clear]))) if clear.any() else float(np.log(own.scale.mean()))
    lowest = np.array([-np.inf, *[0.0] * len(x)])
    found = least_squares(residuals, np.array([start, *[0.5] * len(x)]), bounds=(lowest, np.inf)).x
    return (float(found[0] - found[1:] @ center[:, 0]), *(float(value) for value in found[1:]))
