"""Labels between logarithms and differences, and the line that trees start from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import check_grad

from sedaq.sensitivity.prior.line import Line
from sedaq.sensitivity.prior.response import FLOOR, Response

from .synthetic import EXPONENT, OF_SCORE, synthetic_corpus


def response(effects: np.ndarray, noise: float) -> Response:
    n = len(effects)
    return Response(effects, np.full(n, noise), np.ones(n), np.zeros(n, dtype=int))


def test_far_above_the_noise_residuals_are_differences_of_logarithms() -> None:
    own = response(np.array([1.0, 10.0, 100.0]), 1e-4)
    logs = np.log([2.0, 5.0, 100.0])
    np.testing.assert_allclose(own.residual(logs), np.log(own.effects) - logs, atol=1e-5)
    np.testing.assert_allclose(own.slope(logs), 1, atol=1e-5)
    np.testing.assert_allclose(own.certainty(logs), 1, atol=1e-5)


def test_noise_about_nothing_pulls_to_neither_side() -> None:
    """A logarithm of effect + floor would be far below for negative ones."""
    effects = np.random.default_rng(0).normal(0, 0.05, 20_000)
    own = response(effects, 0.05)
    assert own.residual(np.full(len(effects), -20.0)).mean() == pytest.approx(0, abs=0.01)
    assert np.log(np.maximum(effects + FLOOR, FLOOR / 3)).mean() < -4.5, "which is less than a fifth of the noise"


def test_a_constant_fitted_to_noisy_labels_is_the_true_effect() -> None:
    truth = 0.03
    effects = truth + np.random.default_rng(1).normal(0, 0.03, 20_000)
    own = response(effects, 0.03)
    grid = np.linspace(-6, -1, 200)
    losses = [own.loss(np.full(len(effects), value)) for value in grid]
    assert np.exp(grid[int(np.argmin(losses))]) == pytest.approx(truth, rel=0.15)


def test_certainty_goes_by_the_prediction_and_not_by_the_label() -> None:
    own = response(np.array([0.5, -0.5]), 0.2)
    assert np.ptp(own.certainty(np.log([0.1, 0.1]))) == 0
    assert np.diff(own.certainty(np.log([0.1, 10.0]))) > 0


def test_the_gradient_is_that_of_half_the_squared_residuals() -> None:
    own = response(np.array([0.3, -0.1, 2.0]), 0.1)
    logs = np.array([-1.0, -2.0, 0.3])
    certainty = own.certainty(logs)

    def loss(at: np.ndarray) -> float:
        return float(0.5 * certainty @ own.residual(at) ** 2)

    gradient, curvature = own.objective(np.ones(3))(logs, None)
    assert check_grad(loss, lambda at: own.objective(np.ones(3))(at, None)[0], logs) < 1e-6
    assert (curvature > 0).all() and (np.sign(gradient) == -np.sign(own.residual(logs))).all()


def test_all_models_weigh_alike() -> None:
    table = pd.concat([synthetic_corpus(1, 20), synthetic_corpus(1, 5, first=1)], ignore_index=True)
    own = Response.of(table)
    assert own.n_groups == 2 and own.weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(own.groups, own.weights), len(table) / 2)
    np.testing.assert_allclose(own.effects, table["effect"] / table["full_precision"])


# -- the line ----------------------------------------------------------------------------------------------------------------------------


def test_the_line_finds_the_slopes_of_the_law() -> None:
    """log effect = 0.7 gain + 1.1 error, and gain = score − error."""
    table = synthetic_corpus(6, 30, spread=0.0, level=0.0)
    table = table[(table["sees_image"] == 0) & (table["role"] != "output")]
    own = Response.of(table)
    errors, scores = table["output_error"].to_numpy(), table["gradient_score"].to_numpy()
    line = Line.fit(errors, scores, own, own.weights)
    assert line.by_score == pytest.approx(OF_SCORE, abs=0.03) and line.by_error == pytest.approx(EXPONENT - OF_SCORE, abs=0.05)
    np.testing.assert_allclose(line(errors, scores), line.levels(scores) + line.parts(errors, scores).sum(0))
    assert Line.from_json(line.to_json()) == line


def test_layers_without_a_score_have_a_line_of_their_own_and_no_slope_is_negative() -> None:
    table = synthetic_corpus(4, 20)
    own = Response.of(table)
    errors, scores = table["output_error"].to_numpy(), table["gradient_score"].to_numpy().copy()
    scores[::2] = np.nan
    line = Line.fit(errors, scores, own, own.weights)
    assert np.isfinite(line(errors, scores)).all() and line.by_error_alone > 0.3
    none = Line.fit(errors, np.full(len(errors), np.nan), own, own.weights)
    np.testing.assert_allclose(none(errors, np.full(len(errors), np.nan)), none.level_alone + none.by_error_alone * errors)
    backwards = Line.fit(-errors, -scores, own, own.weights)
    assert min(backwards.by_score, backwards.by_error, backwards.by_error_alone) >= 0
