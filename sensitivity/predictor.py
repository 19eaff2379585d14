"""From formats to fidelity: an additive part over layers, and trees for what it leaves.

    √d ≈ c + Σ_l a_l · e_l(format) + trees(bits of each layer)        a_l ≥ 0, trees monotone in bits

d is the metric (the Fréchet distance by default) and e_l the layer's relative output error under its Hessian, from the encoding store. The
root was best of d, √d, d^¼ and log d on the first probes and a little behind the logarithm on later ones (docs/experiments.md); it is kept
because its terms add up to a distance. The additive part comes first and carries; xgboost starts from it (base_margin). Members of the
ensemble see bootstrap samples of the probes; their spread is the uncertainty.
Deviates from Qua²SeDiMo, whose predictor is a graph network over a hand-drawn graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from scipy.optimize import nnls

from ..aq.menu import Entry
from ..errors import InputError
from ..storage import file_sha256, read_json, write_json

ErrorOf = Callable[[str, Entry], float]  # layer name, entry → relative output error of the encoding
Choice = Mapping[str, Entry]
N_MEMBERS = 8
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
TREES = {
    "max_depth": 2,
    "learning_rate": 0.05,
    "n_estimators": 80,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "reg_lambda": 5.0,
    "min_child_weight": 3,
}


def transform(metric: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(metric, 0))


@dataclass(frozen=True)
class Additive:
    """c + Σ_l a_l e_l, in units of √d."""

    intercept: float
    slopes: np.ndarray  # a_l, by layer

    def __call__(self, errors: np.ndarray) -> np.ndarray:
        """(n, layers) → (n,)"""
        return self.intercept + errors @ self.slopes


def anchor(errors: np.ndarray, target: np.ndarray) -> float | None:
    """√d of full precision, where a probe measured it: the additive part then starts there instead of fitting where to start."""
    whole = errors.sum(1) == 0
    return float(target[whole].mean()) if whole.any() else None


def fit_additive(errors: np.ndarray, target: np.ndarray, ridge: float, intercept: float | None = None) -> Additive:
    """Non-negative least squares, pulled towards one common slope: with more layers than probes most layers cannot be told apart.

    Residuals are relative to the target, so that good plans count as much as ruined ones.

    Args:
        errors: (probes, layers); target: √d, (probes,); ridge: strength of the pull.
        intercept: c where it is known; fitted, and not negative, where None.
    """
    free = 0.0 if intercept is not None else 1.0  # of the intercept's column
    known = intercept or 0.0
    weight = 1 / np.maximum(target, 1e-6)
    weight = weight / weight.mean()
    scale = np.maximum(errors.max(0), 1e-12)
    common = np.column_stack([errors.sum(1), np.full(len(errors), free)])
    slope, _ = nnls(common * weight[:, None], (target - known) * weight)
    prior = slope[0] * scale
    design = np.column_stack([errors / scale, np.full(len(errors), free)]) * weight[:, None]
    pull = np.sqrt(ridge) * np.eye(errors.shape[1], errors.shape[1] + 1)
    solution, _ = nnls(np.vstack([design, pull]), np.concatenate([(target - known) * weight, np.sqrt(ridge) * prior]))
    return Additive(known + free * float(solution[-1]), solution[:-1] / scale)


def choose_ridge(errors: np.ndarray, target: np.ndarray, seed: int) -> float:
    """The ridge with the least relative error on held-out fifths."""
    fold = np.random.default_rng(seed).permutation(len(target)) % 5
    known = anchor(errors, target)
    losses = []
    for ridge in RIDGES:
        predicted = np.empty(len(target))
        for k in range(5):
            predicted[fold == k] = fit_additive(errors[fold != k], target[fold != k], ridge, known)(errors[fold == k])
        losses.append(np.mean(((predicted - target) / np.maximum(target, 1e-6)) ** 2))
    return RIDGES[int(np.argmin(losses))]


def fit_trees(bits: np.ndarray, target: np.ndarray, margin: np.ndarray, seed: int) -> xgboost.XGBRegressor:
    """Gradient-boosted trees on what `margin` leaves of `target`, non-increasing in the bits of every layer."""
    model = xgboost.XGBRegressor(**TREES, monotone_constraints=(-1,) * bits.shape[1], base_score=0.0, random_state=seed, n_jobs=1)
    return model.fit(bits, target, base_margin=margin, sample_weight=1 / np.maximum(target, 1e-6))


class Predictor:
    """An ensemble over one run's layers.

    Args:
        metric: whose values it predicts; lower is better.
        layers: names, in the order of all arrays.
        error_of: looks the error of an entry up.
    """

    def __init__(
        self, metric: str, layers: Sequence[str], members: Sequence[tuple[Additive, xgboost.XGBRegressor]], error_of: ErrorOf
    ) -> None:
        self.metric, self.layers, self.members, self.error_of = metric, list(layers), list(members), error_of
        self._errors: dict[tuple[str, str], float] = {}

    @classmethod
    def fit(
        cls,
        metric: str,
        layers: Sequence[str],
        errors: np.ndarray,
        bits: np.ndarray,
        values: np.ndarray,
        error_of: ErrorOf,
        *,
        seed: int = 0,
        n_members: int = N_MEMBERS,
    ) -> Predictor:
        """Fit to probes: errors and bits (probes, layers), values of the metric (probes,)."""
        target = transform(values)
        ridge, known = choose_ridge(errors, target, seed), anchor(errors, target)
        members = []
        for member in range(n_members):
            # The first member sees every probe once, so that the ensemble of one is the plain fit.
            rows = np.arange(len(target)) if member == 0 else np.random.default_rng([seed, member]).integers(len(target), size=len(target))
            additive = fit_additive(errors[rows], target[rows], ridge, known)
            members.append((additive, fit_trees(bits[rows], target[rows], additive(errors[rows]), seed + member)))
        return cls(metric, layers, members, error_of)

    # -- predicting ------------------------------------------------------------------------------------------------------------------

    def _error(self, name: str, entry: Entry) -> float:
        key = (name, str(entry.format))
        if key not in self._errors:
            self._errors[key] = self.error_of(name, entry)
        return self._errors[key]

    def arrays(self, choices: Sequence[Choice]) -> tuple[np.ndarray, np.ndarray]:
        """Errors and stored bits of each layer, (n, layers) each."""
        errors = np.array([[self._error(name, choice[name]) for name in self.layers] for choice in choices])
        bits = np.array([[choice[name].rate for name in self.layers] for choice in choices])
        return errors, bits

    def predict_members(self, errors: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """√d by each member, (members, n)."""
        return np.stack([model.predict(bits, base_margin=additive(errors)) for additive, model in self.members])

    def predict_arrays(self, errors: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        roots = self.predict_members(errors, bits)
        values = np.maximum(roots, 0) ** 2
        return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])

    def predict(self, choices: Sequence[Choice]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the metric for each choice of entries, (n,) each."""
        return self.predict_arrays(*self.arrays(choices))

    def additive_cost(self, name: str, entry: Entry) -> float:
        """What `entry` alone adds to √d by the additive part, averaged over members: what the exact solver sums."""
        slope = np.mean([additive.slopes[self.layers.index(name)] for additive, _ in self.members])
        return float(slope * self._error(name, entry))

    def costs(self, name: str, entry: Entry) -> np.ndarray:
        """Increase of the metric when layer `name` alone has `entry` and all else is as it is, by each member (members,)."""
        index, error = self.layers.index(name), self._error(name, entry)
        base = np.array([max(additive.intercept, 0.0) for additive, _ in self.members])
        slopes = np.array([additive.slopes[index] for additive, _ in self.members])
        return (base + slopes * error) ** 2 - base**2

    def contributions(self, errors: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each layer adds to √d in each probe, (n, layers), and the rest, (n,): together exactly the mean prediction.

        The additive part's terms plus xgboost's own SHAP values (pred_contribs; Lundberg et al. 2018).
        """
        layers, rest = np.zeros(errors.shape), np.zeros(len(errors))
        for additive, model in self.members:
            matrix = xgboost.DMatrix(bits)  # without the margin: its terms are known and added by layer
            shap = model.get_booster().predict(matrix, pred_contribs=True)
            layers += errors * additive.slopes + shap[:, :-1]
            rest += additive.intercept + shap[:, -1]
        return layers / len(self.members), rest / len(self.members)

    # -- files -----------------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """additive.json and one file of xgboost's own for each member."""
        folder.mkdir(parents=True, exist_ok=True)
        hashes = []
        for number, (_, model) in enumerate(self.members):
            path = folder / f"trees{number}.ubj"
            temporary = folder / f".trees{number}.ubj"
            model.save_model(temporary)
            temporary.replace(path)
            hashes.append(file_sha256(path))
        members = [
            {"intercept": additive.intercept, "slopes": additive.slopes.tolist(), "trees": sha}
            for (additive, _), sha in zip(self.members, hashes, strict=True)
        ]
        write_json(folder / "additive.json", "predictor", {**identity, "metric": self.metric, "layers": self.layers, "members": members})

    @classmethod
    def load(cls, folder: Path, error_of: ErrorOf) -> tuple[Predictor, dict[str, Any]]:
        """The predictor and the identity that it was saved with."""
        content = read_json(folder / "additive.json", "predictor")
        members = []
        for number, member in enumerate(content["members"]):
            path = folder / f"trees{number}.ubj"
            if not path.exists() or file_sha256(path) != member["trees"]:
                raise InputError(f"{path}: is missing or damaged (its sha256 is not the one in additive.json); run `sedaq fit` again")
            model = xgboost.XGBRegressor()
            model.load_model(path)
            members.append((Additive(member["intercept"], np.array(member["slopes"])), model))
        return cls(content["metric"], content["layers"], members, error_of), content
