"""The noise ceiling, and the predictor on probes whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from sedaq.aq.formats import Format
from sedaq.aq.menu import Entry
from sedaq.sensitivity.fitting import noise_ceiling
from sedaq.sensitivity.predictor import Predictor

# -- the noise ceiling -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 2.0])
def test_the_ceiling_is_what_a_perfect_predictor_reaches(noise: float) -> None:
    """Labels are truth + noise; a label is the mean of two halves, each with √2 times its noise."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20_000)
    halves = truth[:, None] + noise * 2**0.5 * rng.normal(size=(20_000, 2))
    reached = spearmanr(truth, halves.mean(1))[0]
    # Spearman–Brown holds exactly for Pearson's correlation; ranks of Gaussians deviate by less than 0.02
    assert noise_ceiling(halves) == pytest.approx(reached, abs=0.02)


def test_the_ceiling_of_pure_noise_is_nothing() -> None:
    rng = np.random.default_rng(1)
    assert noise_ceiling(rng.normal(size=(4000, 2))) < 0.3
    first = rng.normal(size=100)
    assert noise_ceiling(np.column_stack([first, -first])) == 0
    assert noise_ceiling(np.ones((10, 2))) == 0


# -- the predictor -----------------------------------------------------------------------------------------------------------------------

N_LAYERS, N_PROBES = 6, 80
SLOPES = np.array([0.1, 4.0, 1.0, 0.3, 2.0, 0.02])
ERRORS = {1.5: 0.4, 2.0: 0.25, 3.0: 0.1, 4.0: 0.04, 16.0: 0.0}


def error_of(_: str, entry: Entry) -> float:
    return ERRORS[entry.rate]


@pytest.fixture(scope="module")
def synthetic() -> tuple[Predictor, np.ndarray, np.ndarray, np.ndarray]:
    """√d = 1 + Σ slope · error, with a little noise; probes over random rates."""
    rng = np.random.default_rng(0)
    rates = rng.choice(list(ERRORS), size=(N_PROBES, N_LAYERS))
    errors = np.vectorize(ERRORS.get)(rates)
    values = (1 + errors @ SLOPES + 0.02 * rng.normal(size=N_PROBES)) ** 2
    predictor = Predictor.fit("fid", [f"l{i}" for i in range(N_LAYERS)], errors, rates, values, error_of, seed=0)
    return predictor, errors, rates, values


MENU = [Entry(rate, Format("asis") if rate == 16 else Format.parse(f"1x{i}g2"), i, i) for i, rate in enumerate(sorted(ERRORS), start=3)]


def test_known_slopes_are_recovered_in_order(synthetic) -> None:
    predictor, *_ = synthetic
    costs = [predictor.additive_cost(f"l{i}", MENU[0]) for i in range(N_LAYERS)]
    strong = [0, 1, 2, 3, 4]  # the weakest slope is within the noise of the next
    assert np.argsort(np.array(costs)[strong]).tolist() == np.argsort(SLOPES[strong]).tolist()
    np.testing.assert_allclose(costs, SLOPES * ERRORS[1.5], atol=0.06)


def test_unseen_plans_are_predicted(synthetic) -> None:
    predictor, *_ = synthetic
    rng = np.random.default_rng(1)
    picks = rng.integers(len(MENU), size=(60, N_LAYERS))
    predicted, spread = predictor.predict([{f"l{i}": MENU[k] for i, k in enumerate(row)} for row in picks])
    truth = (1 + np.array([[ERRORS[MENU[k].rate] for k in row] for row in picks]) @ SLOPES) ** 2
    assert spearmanr(predicted, truth)[0] > 0.98
    assert (spread > 0).all() and spread.mean() < 0.2 * truth.mean()


def test_more_bits_in_a_layer_never_predict_worse(synthetic) -> None:
    predictor, *_ = synthetic
    rng = np.random.default_rng(2)
    for row in rng.integers(len(MENU), size=(20, N_LAYERS)):
        for layer in range(N_LAYERS):
            choices = [{f"l{i}": entry if i == layer else MENU[k] for i, k in enumerate(row)} for entry in MENU]
            predicted, _ = predictor.predict(choices)
            assert (np.diff(predicted) <= 1e-5 * predicted.max()).all()


def test_costs_fall_with_bits_and_are_nothing_as_is(synthetic) -> None:
    predictor, *_ = synthetic
    for name in predictor.layers:
        costs = np.array([predictor.costs(name, entry) for entry in MENU])  # (entries, members)
        assert (np.diff(costs, axis=0) <= 1e-12).all() and (costs[-1] == 0).all()


def test_contributions_add_up_to_the_mean_prediction(synthetic) -> None:
    predictor, errors, rates, _ = synthetic
    layers, rest = predictor.contributions(errors, rates)
    assert layers.shape == (N_PROBES, N_LAYERS)
    np.testing.assert_allclose(layers.sum(1) + rest, predictor.predict_members(errors, rates).mean(0), atol=1e-4)


def test_saved_and_loaded_predictors_are_equal(synthetic, tmp_path: Path) -> None:
    predictor, errors, rates, _ = synthetic
    predictor.save(tmp_path, {"subject": "s"})
    loaded, content = Predictor.load(tmp_path, error_of)
    assert content["subject"] == "s" and loaded.layers == predictor.layers and loaded.metric == "fid"
    for a, b in zip(predictor.predict_arrays(errors, rates), loaded.predict_arrays(errors, rates), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".ubj", ".json")]


def test_the_same_seed_fits_the_same_predictor(synthetic) -> None:
    predictor, errors, rates, values = synthetic
    again = Predictor.fit("fid", predictor.layers, errors, rates, values, error_of, seed=0)
    assert np.array_equal(predictor.predict_arrays(errors, rates)[0], again.predict_arrays(errors, rates)[0])
