"""The learnt prior: what one layer alone does to the images, told from its properties.

    log(effect / full precision's distance) = line(score, error) + trees(properties) ± level ± width

An ensemble: each member sees the models of the corpus with other weights, drawn at random. The trees are xgboost's, monotone in error and score. Every
model may lie higher or lower as a whole (`level`, a standard deviation over models), and every layer for itself (`width`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xgboost

from ...errors import DamagedError
from ...storage import read_json, write_json
from ..predictor.additive import Array
from ..predictor.tree_files import trees_from_json, trees_to_json
from .line import Line
from .properties import as_numbers, columns

KIND = "prior"
MAX_BYTES = 1_000_000  # of a prior's file
Z90 = 1.6449  # a normal distribution has 90 % within so many standard deviations
_AGAIN = "run `sedaq learn` again"


@dataclass(frozen=True)
class TreeSettings:
    """How the trees are grown; xgboost's names."""

    n_trees: int = 40
    max_depth: int = 2
    learning_rate: float = 0.1
    subsample: float = 0.8
    colsample_bytree: float = 0.5
    reg_lambda: float = 5.0
    min_child_weight: float = 10.0


@dataclass(frozen=True)
class PriorMember:
    """A line and the trees that start from it."""

    line: Line
    trees: xgboost.XGBRegressor | None

    def __call__(self, x: Array, log_errors: Array, log_scores: Array) -> Array:
        start = self.line(log_errors, log_scores)
        return start if self.trees is None else np.asarray(self.trees.predict(x, base_margin=start), float)


@dataclass(frozen=True)
class Predicted:
    """Of each row, in logarithms of the effect over full precision's distance: mean, and standard deviation of a layer about its model's level."""

    mean: Array
    width: Array
    level: float  # standard deviation of a model's level

    @property
    def std(self) -> Array:
        """Of a row of a model that the prior has not seen."""
        return np.hypot(self.width, self.level)


@dataclass(frozen=True)
class LearntPrior:
    """See above.

    level: standard deviation of models. residual: of layers, beside what members differ by. scale: by which both of a layer are multiplied, so that 90 %
    intervals hold 90 % on models left out. models: what it was learnt from. corpus: fingerprint of the corpus. quality: on models left out.
    """

    members: Sequence[PriorMember]
    settings: TreeSettings
    level: float
    residual: float
    scale: float
    models: Sequence[str]
    corpus: str
    quality: Mapping[str, Any] = field(default_factory=dict)

    def predict_members(self, table: pd.DataFrame) -> Array:
        """(members, rows), of a table with the columns of PROPERTIES."""
        x = as_numbers(table)
        log_errors, log_scores = table["output_error"].to_numpy(float), table["gradient_score"].to_numpy(float)
        return np.stack([member(x, log_errors, log_scores) for member in self.members])

    def predict(self, table: pd.DataFrame) -> Predicted:
        """Of the layers of one model."""
        logs = self.predict_members(table)
        return Predicted(logs.mean(0), self.scale * np.hypot(spread(logs), self.residual), self.level)

    # -- files -----------------------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        members = [
            {"line": member.line.to_json(), "trees": [] if member.trees is None else rounded(trees_to_json(member.trees))}
            for member in self.members
        ]
        numbers = {name: getattr(self, name) for name in ("level", "residual", "scale", "corpus")}
        return {
            "columns": list(columns()),
            "settings": asdict(self.settings),
            **numbers,
            "models": list(self.models),
            "quality": dict(self.quality),
            "members": members,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> LearntPrior:
        """Raises DamagedError for one whose trees are none, or that was learnt from other properties."""
        if content["columns"] != list(columns()):
            raise DamagedError(f"{where}: field 'columns' names other properties than this version has; {_AGAIN}")
        settings = TreeSettings(**content["settings"])
        try:
            members = [
                PriorMember(
                    Line.from_json(stored["line"]),
                    trees_from_json(stored["trees"], len(columns()), settings.max_depth) if stored["trees"] else None,
                )
                for stored in content["members"]
            ]
        except DamagedError as error:
            raise DamagedError(f"{where}: {error}; {_AGAIN}") from error
        numbers = {name: content[name] for name in ("level", "residual", "scale", "models", "corpus", "quality")}
        return cls(members, settings, **numbers)

    def save(self, path: Path) -> None:
        write_json(path, KIND, self.to_json())

    @classmethod
    def load(cls, path: Path) -> LearntPrior:
        """Raises DamagedError for a file that is damaged, or no prior."""
        return cls.from_json(read_json(path, KIND), str(path))


def spread(logs: Array) -> Array:
    """Standard deviation of members about their own levels, (rows,) of (members, rows): that of levels is counted apart."""
    return np.zeros(logs.shape[1]) if len(logs) < 2 else (logs - logs.mean(1, keepdims=True)).std(0, ddof=1)


def rounded(trees: Sequence[Mapping[str, Sequence[float]]]) -> list[dict[str, list[float]]]:
    """Trees with six digits a number, of which a float has seven: half the file."""
    return [
        {name: [float(f"{value:.6g}") if isinstance(value, float) else value for value in tree[name]] for name in tree} for tree in trees
    ]
