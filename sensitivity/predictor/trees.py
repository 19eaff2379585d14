"""Gradient-boosted trees on what the additive model leaves, as many as held-out probes bear out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xgboost

from ...errors import DamagedError
from ..probing.probes import Probes
from .additive import Additive, Array, HeldOut
from .features import TreeFeatures

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


# -- files -------------------------------------------------------------------------------------------------------------------------------

# What xgboost's JSON has of every node; all else that it has is of its own making, in a model of this process.
WHOLE, REAL = (
    ("left_children", "right_children", "split_indices", "default_left"),
    ("split_conditions", "base_weights", "sum_hessian", "loss_changes"),
)
ROOT = 2**31 - 1  # the parent of the first node
MAX_NODES = 2 ** (PARAMETERS["max_depth"] + 1) - 1  # type: ignore[operator]


def trees_to_json(model: xgboost.XGBRegressor) -> list[dict[str, list[float]]]:
    """Every tree's nodes."""
    trees = json.loads(model.get_booster().save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    return [{name: tree[name] for name in (*WHOLE, *REAL)} for tree in trees]


def trees_from_json(stored: Sequence[Any], n_features: int) -> xgboost.XGBRegressor:
    """The inverse of `trees_to_json`. xgboost trusts what it loads, so the nodes are looked at first, and put into a model that was made here.

    Raises:
        DamagedError: for nodes that are no trees on so many features.
    """
    model = xgboost.XGBRegressor(**PARAMETERS, n_estimators=1, base_score=0.0, n_jobs=1)
    model.fit(np.zeros((2, n_features)), np.arange(2.0))
    whole = json.loads(model.get_booster().save_raw("json"))
    inside = whole["learner"]["gradient_booster"]["model"]
    inside["trees"] = [{**inside["trees"][0], **_nodes(tree, n_features, number)} for number, tree in enumerate(stored)]
    inside |= {"tree_info": [0] * len(stored), "iteration_indptr": list(range(len(stored) + 1))}
    inside["gbtree_model_param"]["num_trees"] = str(len(stored))
    model.load_model(bytearray(json.dumps(whole).encode()))
    return model


def _nodes(tree: Any, n_features: int, number: int) -> dict[str, Any]:
    try:
        whole = {name: [int(value) for value in tree[name]] for name in WHOLE}
        real: dict[str, list[float]] = {name: [float(value) for value in tree[name]] for name in REAL}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedError(f"tree {number}: lacks or misspells {error}") from error
    left, right, n = whole["left_children"], whole["right_children"], len(whole["left_children"])
    parents = [ROOT] * n
    lengths = {len(values) for values in whole.values()} | {len(values) for values in real.values()}
    sound = 0 < n <= MAX_NODES and lengths == {n}
    sound = sound and all(math.isfinite(value) and abs(value) < 1e30 for values in real.values() for value in values)
    for node in range(n) if sound else ():
        first, second = left[node], right[node]
        if first == second == -1:
            continue
        # xgboost reads the right child behind the left one. Both come after their parent and have no other one, so that there is no circle.
        if not (node < first < second < n and second == first + 1 and parents[first] == parents[second] == ROOT):
            sound = False
            break
        parents[first] = parents[second] = node
    sound = (
        sound
        and ROOT not in parents[1:]
        and all(cover > 0 for cover in real["sum_hessian"])
        and all(0 <= index < n_features for index in whole["split_indices"])
    )
    if not sound or not set(whole["default_left"]) <= {0, 1}:
        raise DamagedError(f"tree {number}: its nodes are no tree")
    nothing: dict[str, Any] = {name: [] for name in ("categories", "categories_nodes", "categories_segments", "categories_sizes")}
    param = {"num_deleted": "0", "num_feature": str(n_features), "num_nodes": str(n), "size_leaf_vector": "1"}
    return {**whole, **real, **nothing, "id": number, "parents": parents, "split_type": [0] * n, "tree_param": param}
