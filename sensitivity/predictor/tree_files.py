"""Files of boosted trees: xgboost trusts what it loads, so that nodes are looked at before it gets them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xgboost

from ...errors import DamagedError

# What xgboost's JSON has of every node; all else that it has is of its own making, in a model of this process.
WHOLE, REAL = (
    ("left_children", "right_children", "split_indices", "default_left"),
    ("split_conditions", "base_weights", "sum_hessian", "loss_changes"),
)
ROOT = 2**31 - 1  # the parent of the first node


def trees_to_json(model: xgboost.XGBRegressor | xgboost.Booster) -> list[dict[str, list[float]]]:
    """Every tree's nodes."""
    booster = model if isinstance(model, xgboost.Booster) else model.get_booster()
    trees = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    return [{name: tree[name] for name in (*WHOLE, *REAL)} for tree in trees]


def trees_from_json(stored: Sequence[Any], n_features: int, max_depth: int = 2) -> xgboost.XGBRegressor:
    """The inverse of `trees_to_json`. xgboost trusts what it loads, so the nodes are looked at first, and put into a model that was made here.

    Raises:
        DamagedError: for nodes that are no trees on so many features, of at most that depth.
    """
    model = xgboost.XGBRegressor(n_estimators=1, max_depth=1, base_score=0.0, n_jobs=1)
    model.fit(np.zeros((2, n_features)), np.arange(2.0))
    whole = json.loads(model.get_booster().save_raw("json"))
    inside = whole["learner"]["gradient_booster"]["model"]
    inside["trees"] = [
        {**inside["trees"][0], **_nodes(tree, n_features, 2 ** (max_depth + 1) - 1, number)} for number, tree in enumerate(stored)
    ]
    inside |= {"tree_info": [0] * len(stored), "iteration_indptr": list(range(len(stored) + 1))}
    inside["gbtree_model_param"]["num_trees"] = str(len(stored))
    model.load_model(bytearray(json.dumps(whole).encode()))
    return model


def _nodes(tree: Any, n_features: int, max_nodes: int, number: int) -> dict[str, Any]:
    try:
        whole = {name: [int(value) for value in tree[name]] for name in WHOLE}
        real: dict[str, list[float]] = {name: [float(value) for value in tree[name]] for name in REAL}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedError(f"tree {number}: lacks or misspells {error}") from error
    left, right, n = whole["left_children"], whole["right_children"], len(whole["left_children"])
    parents = [ROOT] * n
    lengths = {len(values) for values in whole.values()} | {len(values) for values in real.values()}
    sound = 0 < n <= max_nodes and lengths == {n}
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
