"""Scores of predictors against closed forms, the noise ceiling by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from sedaq.sensitivity.predictor import cross_validation
from sedaq.sensitivity.predictor.cross_validation import (
    OURS,
    PREDICTORS,
    cross_validate,
    interval,
    judge,
    kendall,
    learning_curve,
    ndcg10,
    noise_ceiling,
    spearman,
)

from ..surrogates import random_probes


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


def test_scores_of_perfect_reversed_and_flat_predictions() -> None:
    measured = np.arange(20.0)
    assert (
        spearman(measured, measured) == 1
        and kendall(measured, measured) == pytest.approx(1)
        and ndcg10(measured, measured) == pytest.approx(1)
    )
    assert spearman(-measured, measured) == -1 and kendall(-measured, measured) == pytest.approx(-1)
    assert spearman(np.ones(20), measured) == 0 == kendall(np.ones(20), measured)


def test_ndcg_by_its_definition() -> None:
    """Gains are the shares of plans that are worse; the ten best predicted count, each over log2 of its place + 1."""
    rng = np.random.default_rng(0)
    measured, predicted = rng.normal(size=30), rng.normal(size=30)
    gain = np.array([(measured > m).mean() for m in measured])
    discount = 1 / np.log2(np.arange(2, 12))
    expected = (gain[np.argsort(predicted)[:10]] @ discount) / (np.sort(gain)[::-1][:10] @ discount)
    assert ndcg10(predicted, measured) == pytest.approx(expected)


def test_the_interval_covers_a_mean() -> None:
    """Of 100 intervals for a mean of zero about 95 hold it; fewer than 87 has probability 0.1 %."""
    covered = 0
    for seed in range(100):
        sample = np.random.default_rng(seed).normal(size=60)
        low, high = interval(lambda rows, sample=sample: float(sample[rows].mean()), 60, seed)
        covered += low <= 0 <= high
    assert covered >= 87


@pytest.mark.slow
def test_cross_validation_judges_all_on_equal_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_validation, "REPEATS", 2)
    monkeypatch.setattr(cross_validation, "BOOTSTRAPS", 50)
    probes = random_probes(60, noise=0.05)
    predicted = cross_validate(probes, 0)
    assert predicted.keys() == PREDICTORS.keys() and all(p.shape == (2, 60) and np.isfinite(p).all() for p in predicted.values())
    scores = judge(predicted, probes.values, 0)
    assert scores[OURS]["spearman"] > 0.95 > scores["average bits"]["spearman"]
    low, high = scores["average bits"]["behind_ci"]
    assert 0 < low < scores["average bits"]["behind"] < high
    assert scores[OURS]["mae"] < scores["average bits"]["mae"]
    again = cross_validate(probes, 0)
    assert all(np.array_equal(predicted[name], again[name]) for name in predicted)


def test_numbers_alone_keep_their_order() -> None:
    """The line that gives a sum of errors the metric's unit does not change how it orders plans."""
    train, test = random_probes(40), random_probes(40, seed=1)
    predicted = PREDICTORS["summed Hessian error"](train, test, 0)
    assert spearman(predicted, test.errors.sum(1)) > 0.999  # sums that differ by rounding alone


def test_the_learning_curve_rises_to_what_noise_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_validation, "REPEATS", 1)
    curve = learning_curve(random_probes(70, informed=False, noise=0.02), 0)
    assert [point["n_probes"] for point in curve] == [12, 25, 50]
    assert curve[-1]["spearman"] > 0.95
    assert all(-1 <= point["low"] <= point["spearman"] <= point["high"] <= 1 and math.isfinite(point["spearman"]) for point in curve)
