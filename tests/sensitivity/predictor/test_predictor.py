"""The predictor on probes whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from sedaq.errors import DamagedError
from sedaq.sensitivity.predictor.predictor import Predictor
from sedaq.sensitivity.predictor.tree_files import REAL, WHOLE, trees_from_json, trees_to_json
from sedaq.sensitivity.probing.probes import Probes

from ..surrogates import FULL_PRECISION, MENU, N_LAYERS, NAMES, clashing_probes, error_of, known_surrogate, random_probes


def fitted(probes: Probes, **options: int) -> tuple[Predictor, Probes]:
    return Predictor.fit("fid", probes, error_of=error_of, **options), probes


@pytest.fixture(scope="module")
def synthetic() -> tuple[Predictor, Probes]:
    return fitted(random_probes(80))


@pytest.fixture(scope="module")
def clashing() -> tuple[Predictor, Probes]:
    """Has trees."""
    return fitted(clashing_probes(300), n_members=3)


@pytest.fixture(params=["synthetic", "clashing"])
def either(request: pytest.FixtureRequest) -> tuple[Predictor, Probes]:
    return request.getfixturevalue(request.param)


def random_choices(n: int, seed: int) -> list[dict]:
    picks = np.random.default_rng(seed).integers(len(MENU), size=(n, N_LAYERS))
    return [{name: MENU[k] for name, k in zip(NAMES, row, strict=True)} for row in picks]


def test_unseen_plans_are_predicted_with_an_honest_deviation(synthetic) -> None:
    predictor, _ = synthetic
    unseen = random_probes(100, seed=3, noise=0.0)
    predicted, std = predictor.predict_arrays(unseen.errors, unseen.rates)
    assert spearmanr(predicted, unseen.values)[0] > 0.98
    assert (std > 0).all()
    missed = np.abs(predicted - unseen.values)[1:] / std[1:]
    assert np.mean(missed < 2) > 0.9


def test_more_bits_in_a_layer_never_predict_worse(either) -> None:
    predictor, _ = either
    for choice in random_choices(20, 2):
        for name in NAMES:
            predicted, _ = predictor.predict([{**choice, name: entry} for entry in MENU])
            assert (np.diff(predicted) <= 1e-5 * predicted.max()).all()


def test_full_precision_is_predicted_as_itself(synthetic) -> None:
    predictor, probes = synthetic
    predicted, _ = predictor.predict([dict.fromkeys(NAMES, MENU[-1])])
    assert predicted[0] == pytest.approx(FULL_PRECISION, abs=3 * probes.labels.floor)


def test_additive_costs_are_the_terms(synthetic) -> None:
    predictor, _ = synthetic
    for index, name in enumerate(NAMES):
        costs = [predictor.additive_cost(name, entry) for entry in MENU]
        assert (np.diff(costs) <= 0).all() and costs[-1] == 0
        errors = np.zeros(N_LAYERS)
        errors[index] = error_of(name, MENU[0])
        assert costs[0] == pytest.approx(np.mean([member.additive.terms(errors)[index] for member in predictor.members]))


def test_contributions_add_up_to_the_mean_prediction(either) -> None:
    predictor, probes = either
    layers, rest = predictor.contributions(probes.errors, probes.rates)
    assert layers.shape == probes.errors.shape
    np.testing.assert_allclose(layers.sum(1) + rest, predictor.predict_members(probes.errors, probes.rates).mean(0), atol=1e-4)


def test_contributions_without_trees_are_shares_of_the_law() -> None:
    probes = random_probes(40)
    predictor = fitted(probes, n_members=1)[0].without_trees()
    layers, rest = predictor.contributions(probes.errors, probes.rates)
    terms = predictor.members[0].additive.terms(probes.errors)
    rise = layers.sum(1)
    np.testing.assert_allclose(rest, np.log(probes.labels.floor))
    np.testing.assert_allclose(layers[1:], terms[1:] / terms[1:].sum(1, keepdims=True) * rise[1:, None], rtol=1e-9)
    assert (layers[0] == 0).all()  # full precision


def test_trees_learn_what_the_law_cannot_say(clashing) -> None:
    predictor, _ = clashing
    test = clashing_probes(300, seed=1)
    with_trees, without = (
        np.abs(one.predict_members(test.errors, test.rates)[0] - test.labels.target).mean()
        for one in (predictor, predictor.without_trees())
    )
    # The additive model came first and spread the harm over both layers; trees that are monotone cannot take that back from plans with one of them.
    assert predictor.n_trees > 0 and with_trees < 0.9 * without


@pytest.fixture(scope="module")
def noisy() -> Predictor:
    """The additive model is the truth, and noise hides what a fit of it leaves."""
    return fitted(random_probes(80, noise=0.15), n_members=3)[0]


def test_where_noise_hides_what_the_law_leaves_there_are_no_trees(noisy: Predictor) -> None:
    assert noisy.n_trees == 0 and all(member.trees is None for member in noisy.members)


def test_a_fit_clears_files_of_an_earlier_version_away(noisy: Predictor, tmp_path: Path) -> None:
    (tmp_path / "trees0.ubj").write_text("of version 0.1.0")
    noisy.save(tmp_path, {"subject": "s", "probes": "p"})
    assert [path.name for path in tmp_path.iterdir()] == ["additive.json"] and Predictor.load(tmp_path, error_of)[0].n_trees == 0


def test_saved_and_loaded_predictors_are_equal(clashing, tmp_path: Path) -> None:
    predictor, probes = clashing
    predictor.save(tmp_path, {"subject": "s", "probes": "p"})
    loaded, content = Predictor.load(tmp_path, error_of)
    assert (
        content["subject"] == "s"
        and loaded.layers == predictor.layers
        and loaded.metric == "fid"
        and loaded.n_trees == predictor.n_trees > 0
    )
    for a, b in zip(predictor.predict_arrays(probes.errors, probes.rates), loaded.predict_arrays(probes.errors, probes.rates), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for a, b in zip(predictor.contributions(probes.errors, probes.rates), loaded.contributions(probes.errors, probes.rates), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


Trees = list[dict[str, list[float]]]
FORGED: dict[str, Callable[[Trees], object]] = {
    "a child before its parent": lambda trees: trees[0]["left_children"].__setitem__(1, 0),
    "a child far away": lambda trees: trees[0]["left_children"].__setitem__(0, 10**6),
    "a negative child": lambda trees: trees[0]["right_children"].__setitem__(0, -7),
    "a child with two parents": lambda trees: trees[0]["right_children"].__setitem__(0, trees[0]["left_children"][0]),
    "one child": lambda trees: trees[0]["right_children"].__setitem__(0, -1),
    "a feature that is none": lambda trees: trees[0]["split_indices"].__setitem__(0, 10**6),
    "a negative feature": lambda trees: trees[0]["split_indices"].__setitem__(0, -1),
    "NaN": lambda trees: trees[0]["base_weights"].__setitem__(0, float("nan")),
    "fewer weights than nodes": lambda trees: trees[0]["split_conditions"].pop(),
    "no nodes": lambda trees: [trees[0][name].clear() for name in trees[0]],
    "a field less": lambda trees: trees[0].pop("sum_hessian"),
    "text": lambda trees: trees[0].update(left_children="abc"),
    "thousands of nodes": lambda trees: [trees[0][name].extend([-1] * 5000) for name in trees[0]],
}


@pytest.mark.parametrize("forgery", FORGED)
def test_forged_trees_never_reach_xgboost(forgery: str, clashing) -> None:
    trees = next(member.trees for member in clashing[0].members if member.trees is not None)
    stored = trees_to_json(trees)
    n_features = trees.n_features_in_
    assert trees_from_json(stored, n_features) is not None
    FORGED[forgery](stored)
    with pytest.raises(DamagedError, match="tree 0: "):
        trees_from_json(stored, n_features)


@given(st.data())
def test_no_tree_of_any_numbers_crashes(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 7))
    whole = st.lists(st.integers(-2, 8), min_size=n, max_size=n)
    tree = {name: data.draw(whole) for name in WHOLE} | {
        name: data.draw(st.lists(st.floats(width=32), min_size=n, max_size=n)) for name in REAL
    }
    try:
        found = trees_from_json([tree], 3)
    except DamagedError:
        return
    assert np.isfinite(found.get_booster().predict(xgboost.DMatrix(np.random.default_rng(0).normal(size=(5, 3))))).all()


def test_the_same_seed_fits_the_same_predictor(synthetic) -> None:
    predictor, probes = synthetic
    again, _ = fitted(random_probes(80))
    assert np.array_equal(predictor.predict_arrays(probes.errors, probes.rates)[0], again.predict_arrays(probes.errors, probes.rates)[0])


def test_predictions_follow_the_known_law_in_order(synthetic) -> None:
    predictor, _ = synthetic
    choices = random_choices(60, 4)
    errors = np.array([[error_of(name, choice[name]) for name in NAMES] for choice in choices])
    assert spearmanr(predictor.predict(choices)[0], known_surrogate().excess(errors))[0] > 0.98
