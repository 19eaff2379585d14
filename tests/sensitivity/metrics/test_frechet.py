"""The Fréchet distance against closed forms, and its intervals."""

from __future__ import annotations

import math

import pytest
import torch

from sedaq.errors import InputError, SedaqError
from sedaq.sensitivity.metrics.bootstrap import Estimate, resamples
from sedaq.sensitivity.metrics.frechet import Statistics, frechet_distance
from sedaq.sensitivity.metrics.registry import METRICS, measure
from sedaq.sensitivity.metrics.sample import Features, Sample

from .gaussians import gaussian, reference_of, samples


def test_resamples_keep_conditions_in_equal_parts() -> None:
    """Two conditions far apart: sets that hold both alike hardly differ, and the standard error is of such sets."""
    n, reference = 400, reference_of(samples(4000, 2, 99))
    far = torch.tensor([20.0, 0.0])

    def one(seed: int, cycle: int) -> Estimate:
        x = samples(n, 2, seed) + far * (torch.arange(n) % 2).unsqueeze(1)
        return measure(Sample(torch.zeros(n, 1, 1, 1), Features(x), reference, cycle=cycle), seed=seed, n_bootstrap=40)["fid"]

    spread = torch.tensor([one(seed, 2).value for seed in range(40)]).std().item()
    within, blind = (sum(one(seed, cycle).se for seed in range(10)) / 10 for cycle in (2, 1))
    assert within == pytest.approx(spread, rel=0.4)
    assert blind > 3 * spread
    few = resamples(20, 5, 0, cycle=10)
    assert torch.equal(few, resamples(20, 5, 0, cycle=1)), "two images a condition are too few to draw from"


def test_statistics_match_torch() -> None:
    x = samples(50, 4, 0, mean=1000.0)
    statistics = Statistics.of(x)
    torch.testing.assert_close(statistics.mean, x.double().mean(0))
    torch.testing.assert_close(statistics.covariance, torch.cov(x.double().T))


@pytest.mark.parametrize("cut", [1, 7, 49])
def test_merged_statistics_equal_all_at_once(cut: int) -> None:
    x = samples(50, 4, 0, mean=1e4)  # a mean far from zero, where sums of squares would lose the covariance
    merged, whole = Statistics.of(x[:cut]).merge(Statistics.of(x[cut:])), Statistics.of(x)
    assert merged.n == whole.n
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-8, atol=1e-8)


def test_statistics_refuse_what_is_not_finite_and_what_is_too_few() -> None:
    x = samples(6, 2, 0)
    x[3, 1] = torch.nan
    with pytest.raises(SedaqError, match="1 of 6 images"):
        Statistics.of(x)
    with pytest.raises(InputError, match="at least 2"):
        _ = Statistics.of(x[:1]).covariance


def test_frechet_in_one_dimension() -> None:
    a, b = gaussian(torch.tensor([1.0]), torch.tensor([[4.0]])), gaussian(torch.tensor([-2.0]), torch.tensor([[9.0]]))
    assert frechet_distance(a, b) == pytest.approx(3**2 + (3 - 2) ** 2)


def test_frechet_of_commuting_covariances() -> None:
    mean, u, v = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([1.0, 4.0, 0.25]), torch.tensor([9.0, 1.0, 0.0])
    expected = mean.square().sum() + (u.sqrt() - v.sqrt()).square().sum()
    assert frechet_distance(gaussian(mean, u.diag()), gaussian(torch.zeros(3), v.diag())) == pytest.approx(expected.item())


def test_frechet_of_general_gaussians_in_the_plane() -> None:
    # For 2×2 matrices tr √M = √(tr M + 2 √det M), so the cross term has a closed form without eigenvectors.
    a, b = torch.tensor([[2.0, 0.7], [0.7, 1.0]]), torch.tensor([[1.0, -0.4], [-0.4, 3.0]])
    cross = math.sqrt((a @ b).trace() + 2 * math.sqrt((a @ b).det()))
    expected = (a.trace() + b.trace()).item() - 2 * cross
    assert frechet_distance(gaussian(torch.zeros(2), a), gaussian(torch.zeros(2), b)) == pytest.approx(expected, rel=1e-6)


def test_frechet_is_zero_symmetric_and_invariant_to_rotation() -> None:
    x, y = samples(80, 6, 0), samples(60, 6, 1, mean=0.5, scale=2.0)
    rotation = torch.linalg.qr(samples(6, 6, 2).double()).Q
    a, b = Statistics.of(x), Statistics.of(y)
    turned = frechet_distance(Statistics.of(x.double() @ rotation), Statistics.of(y.double() @ rotation))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(turned, rel=1e-9)


def test_frechet_with_fewer_images_than_features() -> None:
    x, y = samples(5, 12, 0), samples(40, 12, 1)
    value, again = (
        measure(Sample(torch.zeros(5, 1, 2, 2), Features(x), reference_of(y)), seed=0)["fid"].value,
        frechet_distance(Statistics.of(x), Statistics.of(y)),
    )
    assert value == pytest.approx(again, rel=1e-6)


def test_difference_intervals_cover_and_pairing_narrows_them() -> None:
    reference = reference_of(samples(4000, 2, 99))
    covered, paired, unpaired = 0, 0.0, 0.0
    for seed in range(40):
        x, y = samples(200, 2, seed), samples(200, 2, 1000 + seed)
        difference, low, high = METRICS["fid"].worsening(1.1 * x + 1, x + 1, reference, n_bootstrap=100, seed=seed)
        assert low <= difference <= high
        covered += low <= 2 * 0.1**2 <= high
        paired += high - low
        _, low, high = METRICS["fid"].worsening(1.1 * y + 1, x + 1, reference, n_bootstrap=100, seed=seed)
        unpaired += high - low
    assert covered >= 33  # 38 expected; fewer than 33 has probability 0.1 %
    assert paired < 0.5 * unpaired


def test_difference_of_equal_features_is_zero_and_repeatable() -> None:
    x, reference = samples(50, 3, 0), reference_of(samples(100, 3, 1))
    assert METRICS["fid"].worsening(x, x, reference, n_bootstrap=10, seed=0) == (0.0, 0.0, 0.0)
    y = x * 1.2
    assert METRICS["fid"].worsening(x, y, reference, n_bootstrap=10, seed=3) == METRICS["fid"].worsening(
        x, y, reference, n_bootstrap=10, seed=3
    )
    with pytest.raises(InputError, match="paired"):
        METRICS["fid"].worsening(x, y[:40], reference)
