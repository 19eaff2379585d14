"""How well predictors order plans: scores, the ceiling that noise sets, and cross-validation beside simpler predictors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xgboost
from scipy.stats import bootstrap, kendalltau, rankdata
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.metrics import ndcg_score
from sklearn.model_selection import RepeatedKFold

from ...progress import track
from ..probing.probes import Probes
from .additive import Array
from .predictor import Predictor

FOLDS, REPEATS = 5, 3
BOOTSTRAPS = 500
OURS, ADDITIVE = "sedaq", "additive part alone"
Judged = Callable[[Probes, Probes, int], Array]  # training probes, probes to predict, seed → predicted values


def spearman(predicted: Array, measured: Array) -> float:
    return float(spearmans(predicted[None], measured)[0])


def spearmans(predicted: Array, measured: Array) -> Array:
    """Rank correlation of each row of `predicted` (m, n) with `measured` (n,); 0 where either is constant."""
    ranks, other = rankdata(predicted, axis=1), rankdata(measured)
    ranks, other = ranks - ranks.mean(1, keepdims=True), other - other.mean()
    scale = np.sqrt((ranks**2).sum(1) * (other @ other))
    return np.asarray(np.where(scale > 0, ranks @ other / np.where(scale > 0, scale, 1.0), 0.0))


def kendall(predicted: Array, measured: Array) -> float:
    return 0.0 if np.ptp(predicted) == 0 or np.ptp(measured) == 0 else float(kendalltau(predicted, measured)[0])


def ndcg10(predicted: Array, measured: Array) -> float:
    """Normalized discounted cumulative gain of the ten best predicted (Järvelin & Kekäläinen 2002); a plan's gain is the share of the others
    that it is better than."""
    worse = (measured[:, None] < measured[None, :]).mean(1)
    return float(ndcg_score(worse[None], -predicted[None], k=10))


def mean_absolute_error(predicted: Array, measured: Array) -> float:
    return float(np.abs(predicted - measured).mean())


SCORES: dict[str, Callable[[Array, Array], float]] = {
    "spearman": spearman,
    "kendall": kendall,
    "ndcg10": ndcg10,
    "mae": mean_absolute_error,
}


def noise_ceiling(halves: Array) -> float:
    """√(2r / (1 + r)): the rank correlation that a perfect predictor would reach with labels as noisy as these (Spearman–Brown)."""
    r = max(spearman(halves[:, 0], halves[:, 1]), 0.0)
    return float(np.sqrt(2 * r / (1 + r)))


def interval(statistic: Callable[[Any], Any], n: int, seed: int) -> Any:
    """95 % percentile interval over bootstrap samples of n probes: [low, high], or a list of such where the statistic is an array."""
    drawn = bootstrap(
        (np.arange(n),), statistic, n_resamples=BOOTSTRAPS, vectorized=False, method="percentile", rng=np.random.default_rng(seed)
    )
    return np.stack(drawn.confidence_interval, axis=-1).tolist()


# -- predictors --------------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _fitted(train: Probes, seed: int) -> Predictor:
    """Our predictor, one member, for two rows of the table."""
    return Predictor.fit("", train, error_of=lambda *_: 0.0, seed=seed, n_members=1)


def _ours(train: Probes, test: Probes, seed: int) -> Array:
    return _fitted(train, seed).predict_arrays(test.errors, test.rates)[0]


def _additive_alone(train: Probes, test: Probes, seed: int) -> Array:
    return _fitted(train, seed).without_trees().predict_arrays(test.errors, test.rates)[0]


def _values(target: Array, train: Probes) -> Array:
    """Metric values from log(excess + floor)."""
    return train.full_precision + np.exp(np.minimum(target, 100.0)) - train.labels.floor


def _one_number(number: Callable[[Probes], Array]) -> Judged:
    """A single number of a plan; a straight line fitted to the target gives it the metric's unit and leaves the order."""

    def predict(train: Probes, test: Probes, seed: int) -> Array:
        line = LinearRegression(positive=True).fit(number(train)[:, None], train.labels.target)
        return _values(line.predict(number(test)[:, None]) + 1e-9 * number(test), train)  # an order even where the line is flat

    return predict


def _forest(n_layers: int, seed: int) -> RandomForestRegressor:
    """Every split looks at all layers, at a hundred of them where there are more."""
    return RandomForestRegressor(100, max_features=min(1.0, 100 / n_layers), random_state=seed)


def _regressor(make: Callable[[int, int], Any]) -> Judged:
    """A regression of the target on every layer's bits."""

    def predict(train: Probes, test: Probes, seed: int) -> Array:
        return _values(make(train.rates.shape[1], seed).fit(train.rates, train.labels.target).predict(test.rates), train)

    return predict


def _log_sum(name: str) -> Callable[[Probes], Array]:
    return lambda probes: np.log(getattr(probes, name).sum(1) + 1e-9)


PREDICTORS: dict[str, Judged] = {
    OURS: _ours,
    ADDITIVE: _additive_alone,
    "average bits": _one_number(lambda probes: -probes.bits),
    "summed weight error": _one_number(_log_sum("weight_errors")),
    "summed Hessian error": _one_number(_log_sum("errors")),
    "gradient score": _one_number(_log_sum("scores")),
    "ridge on bits": _regressor(lambda *_: RidgeCV(np.logspace(-2, 4, 13))),
    "random forest on bits": _regressor(_forest),
    "xgboost on bits": _regressor(lambda _, seed: xgboost.XGBRegressor(random_state=seed, n_jobs=1)),
}

_WITH_ADDITIVE = (OURS, ADDITIVE)  # share one fit


# -- judging -----------------------------------------------------------------------------------------------------------------------------


def cross_validate(probes: Probes, seed: int) -> dict[str, Array]:
    """Out-of-fold predictions of every predictor, (repeats, probes), on the same folds."""
    predicted = {name: np.empty((REPEATS, len(probes))) for name in PREDICTORS}
    folds = list(RepeatedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=seed).split(probes.bits))
    with ThreadPoolExecutor(1) as simpler:  # forests release the interpreter's lock, so that they grow while ours is fitted here
        for index, (learnt, held_out) in enumerate(track(folds, "cross-validation")):
            train, test = probes[learnt], probes[held_out]
            others = {
                name: simpler.submit(predict, train, test, seed) for name, predict in PREDICTORS.items() if name not in _WITH_ADDITIVE
            }
            for name in PREDICTORS:
                found = PREDICTORS[name](train, test, seed) if name in _WITH_ADDITIVE else others[name].result()
                predicted[name][index // FOLDS, held_out] = found
    return predicted


def judge(predicted: Mapping[str, Array], measured: Array, seed: int) -> dict[str, dict[str, Any]]:
    """Every score of every predictor; and for all but ours, by how much its rank correlation is less than ours, with a 95 % interval.

    Args:
        predicted: (repeats, probes) each; scores are means over repeats. measured: (probes,).
    """

    result: dict[str, dict[str, Any]] = {
        name: {label: float(np.mean([score(one, measured) for one in repeats])) for label, score in SCORES.items()}
        for name, repeats in predicted.items()
    }
    others = [name for name in predicted if name != OURS]
    stacked = np.concatenate([predicted[name] for name in (OURS, *others)])

    def ahead(rows: Array) -> Array:
        ours, *theirs = spearmans(stacked[:, rows], measured[rows]).reshape(1 + len(others), -1).mean(1)
        return np.asarray(ours - np.array(theirs))

    for name, bounds in zip(others, interval(ahead, len(measured), seed), strict=True):
        result[name]["behind"] = result[OURS]["spearman"] - result[name]["spearman"]
        result[name]["behind_ci"] = bounds
    return result


def learning_curve(probes: Probes, seed: int) -> list[dict[str, float]]:
    """Rank correlation on the probes that were left out, by how many were learnt from: mean, least and greatest of REPEATS random parts."""
    sizes = [n for n in (12, 25, 50, 100, 200, 400, 800) if n <= 0.8 * len(probes)]
    curve = []
    for size in track(sizes, "learning curve", sum(sizes), cost=float):
        found = []
        for repeat in range(REPEATS):
            order = np.random.default_rng([seed, size, repeat]).permutation(len(probes))
            train, test = probes[order[:size]], probes[order[size:]]
            found.append(spearman(_ours(train, test, seed), test.values))
        curve.append({"n_probes": size, "spearman": float(np.mean(found)), "low": min(found), "high": max(found)})
    return curve
