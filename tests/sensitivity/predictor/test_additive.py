"""The additive model of layers' errors on probes whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import spearmanr

from sedaq.sensitivity.predictor.additive import SCORE_FACTOR, Additive, Labels, LayerPriors, _Objective, fit_additive
from sedaq.sensitivity.predictor.ridge import choose_ridge

from ..surrogates import (
    ERRORS,
    EXPONENT,
    FULL_PRECISION,
    N_LAYERS,
    POWER,
    RATES,
    SATURATION,
    SLOPES,
    known_surrogate,
    probes_at,
    random_probes,
    table,
)


def test_the_gradient_is_that_of_the_loss() -> None:
    probes = random_probes(20)
    objective = _Objective(probes.errors, probes.labels, probes.table.priors, 0.3)
    start = objective.start() + 0.1 * np.random.default_rng(0).normal(size=len(objective.start()))
    size = np.linalg.norm(objective(start)[1])
    assert check_grad(lambda z: objective(z)[0], lambda z: objective(z)[1], start) < 1e-4 * size


def test_a_known_law_comes_back() -> None:
    probes = random_probes(150)
    fitted = fit_additive(probes.errors, probes.labels, probes.table.priors, 0.03)
    assert fitted.power == pytest.approx(POWER, rel=0.15) and SATURATION / 5 < fitted.saturation < 5 * SATURATION
    strong = SLOPES > 0.05
    lowest = np.full(N_LAYERS, ERRORS[1.5])
    alone, truth = (surrogate.of_total(surrogate.terms(lowest)) for surrogate in (fitted, known_surrogate()))
    np.testing.assert_allclose(alone[strong], truth[strong], rtol=0.35)
    np.testing.assert_allclose(fitted.exponents[strong], EXPONENT, atol=0.25)


def test_terms_grow_with_errors_and_are_nothing_without() -> None:
    surrogate = known_surrogate()
    errors = np.linspace(0, 1, 11)[:, None] * np.ones(N_LAYERS)
    terms = surrogate.terms(errors)
    assert (terms[0] == 0).all() and (np.diff(terms, axis=0) > 0).all()
    assert surrogate.excess(np.zeros(N_LAYERS)) == 0
    np.testing.assert_allclose(surrogate.excess(errors), terms.sum(1) * (1 + terms.sum(1) / SATURATION) ** (POWER - 1))


def test_small_harms_add_up_and_great_ones_grow_with_the_power() -> None:
    surrogate = known_surrogate()
    small, great = 1e-6 * SATURATION, 1e6 * SATURATION
    assert float(surrogate.of_total(2 * small) / surrogate.of_total(small)) == pytest.approx(2, rel=1e-4)
    assert float(surrogate.of_total(2 * great) / surrogate.of_total(great)) == pytest.approx(2**POWER, rel=1e-4)


def test_lines_bend_where_probes_say_so_and_never_fall() -> None:
    """The true harm of layer 1 does not grow beyond its second lowest error."""
    probes = random_probes(200)
    flat = probes.errors.copy()
    flat[:, 1] = np.minimum(flat[:, 1], ERRORS[2.0])
    truth = known_surrogate().excess(flat)
    labels = Labels.of(truth, 0.02 * truth + 1e-3, FULL_PRECISION)
    surrogate = fit_additive(probes.errors, labels, probes.table.priors, 0.03)
    levels = np.zeros((4, N_LAYERS))
    levels[:, 1] = [ERRORS[4.0], ERRORS[3.0], ERRORS[2.0], ERRORS[1.5]]
    terms = surrogate.terms(levels)[:, 1]
    assert (np.diff(terms) >= 0).all()
    steps = np.diff(np.log(terms)) / np.diff(np.log(levels[:, 1]))
    assert steps[2] < 0.4 * steps[:2].mean()
    between = np.zeros((50, N_LAYERS))
    between[:, 1] = np.geomspace(0.01, 2, 50)
    assert (np.diff(surrogate.terms(between)[:, 1]) >= 0).all() and np.isfinite(surrogate.terms(between)).all()
    again = Additive.from_json(json.loads(json.dumps(surrogate.to_json())))
    np.testing.assert_array_equal(again.terms(probes.errors), surrogate.terms(probes.errors))


def test_bends_are_linear_between_knots_and_constant_beyond() -> None:
    """Layers with three knots, one and none, against np.interp."""
    knots, offsets = [[-4.0, -2.0, -1.0], [-3.0], []], [[0.5, -0.2, 0.3], [0.7], []]
    content = {
        "log_slopes": [0.0] * 3,
        "exponents": [1.0] * 3,
        "log_errors": [0.0] * 3,
        "power": 1.0,
        "knee": 1.0,
        "knots": knots,
        "bends": offsets,
    }
    surrogate = Additive.from_json(content)
    logs = np.linspace(-6, 1, 57)
    terms = surrogate.terms(np.exp(np.repeat(logs[:, None], 3, axis=1)))
    np.testing.assert_allclose(np.log(terms[:, 0]), logs + np.interp(logs, knots[0], offsets[0]), atol=1e-12)
    np.testing.assert_allclose(np.log(terms[:, 1]), logs + 0.7, atol=1e-12)
    np.testing.assert_allclose(np.log(terms[:, 2]), logs, atol=1e-12)
    assert surrogate.to_json() == content
    other = replace(surrogate, log_slopes=surrogate.log_slopes + 1)
    for layer in range(3):
        both = Additive.across([surrogate, other], layer).terms(np.exp([-3.1, -2.0]))
        alone = [one.terms(np.exp([x] * 3))[layer] for one, x in ((surrogate, -3.1), (other, -2.0))]
        np.testing.assert_allclose(both, alone)


def test_with_fewer_probes_than_layers_the_scores_carry() -> None:
    """Three probes for six layers: what the gradients knew orders unseen plans, what knows nothing does not."""
    unseen = random_probes(200, seed=9)
    found = {}
    for informed in (True, False):
        few = random_probes(4, seed=5, informed=informed)
        surrogate = fit_additive(few.errors, few.labels, few.table.priors, 0.3)
        found[informed] = spearmanr(surrogate.excess(unseen.errors), unseen.values)[0]
    assert found[True] > 0.95 and found[True] > found[False] + 0.02


def test_uniform_plans_alone_leave_the_order_of_layers_to_their_scores() -> None:
    """Five uniform plans say nothing of which layers matter. What they leave open must not be made up."""
    unseen = random_probes(200, seed=9)
    for seed in range(5):
        few = probes_at(np.repeat(np.array(RATES)[:, None], N_LAYERS, axis=1), np.random.default_rng(seed))
        surrogate = fit_additive(few.errors, few.labels, few.table.priors, 0.3)
        assert np.polyfit(few.table.priors.slopes, surrogate.log_slopes, 1)[0] == pytest.approx(SCORE_FACTOR, abs=0.03)
        assert spearmanr(surrogate.excess(unseen.errors), unseen.values)[0] > 0.97


def test_noisy_labels_weigh_less() -> None:
    labels = Labels(np.array([10.0, 10.0, 10.0]), np.array([0.0, 1.0, 5.0]), FULL_PRECISION, 0.1)
    np.testing.assert_allclose(labels.weights, 1 / (1 + (np.array([0.0, 1.0, 5.0]) / 10.1 / 0.1) ** 2))
    probes = random_probes(60)
    spoiled = probes.labels.excess.copy()
    spoiled[10:15] *= 20
    trusted = replace(probes.labels, excess=spoiled)
    doubted = replace(trusted, se=np.where(spoiled != probes.labels.excess, 100 * spoiled, probes.labels.se))
    truth = known_surrogate().excess(probes.errors)[30:]
    off = {}
    for name, labels in (("trusted", trusted), ("doubted", doubted)):
        surrogate = fit_additive(probes.errors, labels, probes.table.priors, 0.3)
        off[name] = np.abs(np.log(surrogate.excess(probes.errors[30:]) / truth)).mean()
    assert off["doubted"] < 0.1 < off["trusted"]


def test_labels_below_full_precision_are_kept_finite_and_the_floor_is_the_noise_of_the_best() -> None:
    labels = Labels.of(np.array([-0.5, 0.0, 0.2, 5.0, 50.0, 500.0]), np.array([0.1, 0.1, 0.3, 1.0, 5.0, 20.0]), FULL_PRECISION)
    assert labels.floor == pytest.approx(0.1)
    assert np.isfinite(labels.target).all() and (np.diff(labels.target) >= 0).all()


def test_the_ridge_is_chosen_by_held_out_probes_and_says_how_far_off() -> None:
    probes = random_probes(80, noise=0.05)
    chosen, again = (choose_ridge(probes.errors, probes.labels, probes.table.priors, 0) for _ in range(2))
    assert chosen.ridge < 3 and 0.02 < chosen.residual < 0.2
    assert (chosen.ridge, chosen.residual) == (again.ridge, again.residual)
    surrogate, out = chosen.surrogates[1], chosen.fold == 1
    kept = fit_additive(probes.errors[~out], probes.labels[~out], probes.table.priors, chosen.ridge)
    np.testing.assert_allclose(
        surrogate.excess(probes.errors), kept.excess(probes.errors), rtol=0.02, err_msg="of the probes outside its fold"
    )


def test_layers_without_any_error_do_no_harm() -> None:
    probes = random_probes(30)
    errors = probes.errors.copy()
    errors[:, 3] = 0
    menus = [np.array(list(ERRORS.values()))] * N_LAYERS
    menus[3] = np.zeros(len(ERRORS))
    priors = LayerPriors.of(menus, menus)
    assert np.isfinite(priors.log_errors).all() and np.isfinite(priors.log_scores).all()
    surrogate = fit_additive(errors, probes.labels, priors, 0.3)
    assert isinstance(surrogate, Additive) and np.isfinite(surrogate.excess(errors)).all()
    assert table().priors.log_errors.shape == (N_LAYERS,)
