"""Gradient-boosted trees on what the additive model leaves, as many as held-out probes bear out."""

from __future__ import annotations

import numpy as np
import xgboost

from ..probing.probes import Probes
from .additive import Additive, Array
from .features import TreeFeatures
from .ridge import HeldOut

PARAMETERS = {
    "max_depth": 2,
    "learning_rate": 0.05,
    "subsample": 0.8,
    "colsample_bytree": 0.5,
    "reg_lambda": 5.0,
    "min_child_weight": 3,
}
NUMBERS = (10, 20, 40, 80)


def inputs(surrogate: Additive, errors: Array, rates: Array, features: TreeFeatures, floor: float) -> tuple[Array, Array]:
    """What trees see, (n, features), and where they start: log(excess + floor) by the additive model, (n,)."""
    terms = surrogate.terms(errors)
    return features(rates, errors, terms), np.log(surrogate.of_total(terms.sum(1)) + floor)


def fit_trees(surrogate: Additive, probes: Probes, n_trees: int, seed: int) -> xgboost.XGBRegressor:
    """Trees that start from the additive model (base_margin), monotone in rates and errors."""
    features, labels = probes.table.features, probes.labels
    x, margin = inputs(surrogate, probes.errors, probes.rates, features, labels.floor)
    model = xgboost.XGBRegressor(
        **PARAMETERS,
        n_estimators=n_trees,
        monotone_constraints=features.monotone,
        feature_weights=features.weights,
        base_score=0.0,
        random_state=seed,
        n_jobs=1,
    )
    return model.fit(x, labels.target, base_margin=margin, sample_weight=labels.weights)


def choose_number(held_out: HeldOut, probes: Probes, seed: int) -> tuple[int, float]:
    """How many trees, and the root of the weighted mean squared residual with them, both on the folds that chose the ridge.

    None unless the best number lowers the mean by more than one standard error of the difference over probes.
    """
    labels, squares = probes.labels, np.empty((1 + len(NUMBERS), len(probes)))
    for k, surrogate in enumerate(held_out.surrogates):
        test = held_out.fold == k
        trees = fit_trees(surrogate, probes[~test], max(NUMBERS), seed).get_booster()
        x, margin = inputs(surrogate, probes.errors[test], probes.rates[test], probes.table.features, labels.floor)
        matrix = xgboost.DMatrix(x, base_margin=margin)
        predicted = [margin, *(trees.predict(matrix, iteration_range=(0, n)) for n in NUMBERS)]
        squares[:, test] = (np.array(predicted, np.float64) - labels.target[test]) ** 2
    squares *= labels.weights / labels.weights.mean()
    best = int(squares.mean(1).argmin())
    gain = squares[0] - squares[best]
    if gain.mean() <= gain.std() / len(probes) ** 0.5:
        best = 0
    return (0, *NUMBERS)[best], float(squares[best].mean() ** 0.5)
