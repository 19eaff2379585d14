"""The table of metrics: one definition serves values, errors and paired differences."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sedaq.errors import InputError
from sedaq.sensitivity.metrics.bootstrap import difference
from sedaq.sensitivity.metrics.fidelity import Kernel, kernel_distance
from sedaq.sensitivity.metrics.frechet import Statistics
from sedaq.sensitivity.metrics.registry import METRICS, evidence_of, mean_metric, measure, measure_evidence, metric_of
from sedaq.sensitivity.metrics.sample import Features, Reference, Sample

from .gaussians import reference_of, samples

N = 48


@pytest.fixture
def every_metric() -> list[Sample]:
    """Samples that together have all that any metric needs."""
    reference = Reference(Statistics.of(samples(90, 3, 3)), samples(30, 3, 4), Statistics.of(samples(90, 5, 5)), "test", "0")
    images = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    pooled, spatial, embeddings = samples(N, 3, 0), samples(N, 5, 1), samples(N, 6, 6)
    full = Sample(images * 0.9, Features(pooled * 1.1, spatial), reference)
    own = Sample(images, Features(pooled, spatial, samples(N, 10, 2)), reference, torch.arange(N) % 10, full)
    inception = Sample(images, Features(pooled, spatial, samples(N, 1008, 2), embeddings), reference, samples(N, 6, 7))
    return [own, inception]


def test_a_statistic_of_all_images_is_the_value_that_is_recorded(every_metric: list[Sample]) -> None:
    seen = set()
    for sample in every_metric:
        estimates, evidence = measure(sample, seed=0), evidence_of(sample)
        for name, metric in METRICS.items():
            if name not in estimates:
                continue
            seen.add(name)
            statistic = metric.statistic(evidence[metric.evidence_name], sample.reference)
            if name != "kid":  # recorded from subsets
                assert statistic(torch.ones(N, dtype=torch.float64)) == pytest.approx(estimates[name].value, rel=1e-9)
            halves = torch.zeros(N, dtype=torch.float64)
            halves[: N // 2] = 1
            if name != "kid":
                assert statistic(halves) == pytest.approx(estimates[name].halves[0], rel=1e-9)
    assert seen == set(METRICS)


def test_worsening_is_above_zero_for_what_is_worse_whatever_the_direction() -> None:
    reference = reference_of(samples(300, 3, 9))
    good, bad = samples(N, 3, 0), samples(N, 3, 0) + 1
    for name in ("fid", "kid"):
        value, low, high = METRICS[name].worsening(bad, good, reference)
        assert 0 < low < value < high
    right, wrong = torch.ones(N, dtype=torch.float64), (torch.arange(N) % 2).double()
    assert METRICS["psnr"].higher_is_better and not METRICS["feature_distance"].higher_is_better
    value, low, high = METRICS["psnr"].worsening(wrong, right, reference)
    assert value == pytest.approx(0.5) and 0 < low < high
    ones = torch.ones(N, dtype=torch.float64)
    half, whole = (torch.stack([distances, ones], dim=1) for distances in (wrong, right))
    assert METRICS["feature_distance"].worsening(half, whole, reference)[0] == pytest.approx(-0.5)
    assert METRICS["psnr"].worsening(right, right, reference) == (0.0, 0.0, 0.0)


def test_the_interval_of_a_mean_covers_and_has_the_width_of_the_standard_error() -> None:
    covered, widths = 0, []
    for seed in range(60):
        x, noise = samples(200, 1, seed).double()[:, 0], 0.2 * samples(200, 1, 1000 + seed).double()[:, 0]
        _, low, high = METRICS["psnr"].worsening(x, x + noise + 0.1, reference_of(samples(9, 2, 2)), seed=seed)
        covered += low <= 0.1 <= high
        widths.append(high - low)
    assert covered >= 51  # 57 expected
    assert sum(widths) / 60 == pytest.approx(2 * 1.96 * 0.2 / 200**0.5, rel=0.1)


def test_the_standard_error_of_a_feature_distance_is_that_of_a_ratio_of_means() -> None:
    values, errors = [], []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        powers = 1 + torch.rand(100, dtype=torch.float64, generator=generator)
        distances = powers * (0.2 + 0.1 * torch.rand(100, dtype=torch.float64, generator=generator))
        metric = METRICS["feature_distance"]
        assert metric.estimate is not None
        found = metric.estimate(torch.stack([distances, powers], dim=1), reference_of(samples(9, 2, 2)), 0)
        assert found.value == pytest.approx((distances.sum() / powers.sum()).item())
        values.append(found.value)
        errors.append(found.se)
    assert torch.tensor(errors).mean().item() == pytest.approx(torch.tensor(values).std().item(), rel=0.15)


def test_a_resampled_kernel_distance_is_that_of_the_paper_for_all_images() -> None:
    x, y = samples(20, 4, 0), samples(20, 4, 1, mean=0.3)
    whole = Kernel(x, y)
    assert whole(torch.ones(20, dtype=torch.float64)) == pytest.approx(kernel_distance(x, y, n_subsets=2, subset_size=20, seed=0)[0])
    first = torch.zeros(20, dtype=torch.float64)
    first[:10] = 1
    assert whole(first) == pytest.approx(Kernel(x[:10], y)(torch.ones(10, dtype=torch.float64)))


def test_a_difference_is_of_images_in_pairs() -> None:
    with pytest.raises(InputError, match=r"paired images give \(4, 2\) and \(3, 2\) numbers; sample both alike"):
        METRICS["fid"].worsening(samples(4, 2, 0), samples(3, 2, 0), reference_of(samples(9, 2, 2)))
    assert difference(lambda counts: counts.sum().item(), lambda counts: counts.sum().item(), 5) == (0.0, 0.0, 0.0)


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="metric 'beauty' is unknown; choose one of fid, sfid, kid, "):
        metric_of("beauty")


def test_a_metric_whose_needs_are_not_met_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    row = mean_metric(
        "loudness", "Loudness", lambda sample: None if sample.features.logits is None else sample.features.logits.double()[:, 0]
    )
    monkeypatch.setitem(METRICS, "loudness", row)
    reference, images = reference_of(samples(9, 2, 2)), torch.zeros(8, 1, 2, 2)
    assert "loudness" not in measure(Sample(images, Features(samples(8, 2, 0)), reference), seed=0)
    logits = samples(8, 3, 1)
    measured = measure(Sample(images, Features(samples(8, 2, 0), None, logits), reference), seed=0)["loudness"]
    assert measured.value == pytest.approx(logits[:, 0].double().mean().item())
    assert row.heading == "Loudness" and METRICS["psnr"].heading == "PSNR, dB" and METRICS["agreement"].heading == "Classifier agreement"


def test_a_reference_without_features_of_its_own_takes_no_evidence_away(every_metric: list[Sample]) -> None:
    sample = every_metric[0]
    bare = Reference(sample.reference.statistics, None, None, "mean and covariance alone", "1")
    alone = dataclasses.replace(sample, reference=bare)
    found = measure(alone, seed=0)
    assert "fid" in found and "kid" not in found and "sfid" not in found
    assert torch.equal(evidence_of(alone)["pooled"], sample.features.pooled), "by which plans are compared"


def test_evidence_of_parts_is_that_of_the_whole(every_metric: list[Sample]) -> None:
    sample = every_metric[0]
    assert sample.full_precision is not None and sample.requested is not None

    def part(of: Sample, rows: slice, full: Sample | None, requested: torch.Tensor | None) -> Sample:
        return Sample(of.images[rows], of.features[rows], of.reference, requested, full)

    parts, of_full = [], []
    for rows in (slice(0, 20), slice(20, N)):
        full = part(sample.full_precision, rows, None, None)
        parts.append(evidence_of(part(sample, rows, full, sample.requested[rows])))
        of_full.append(evidence_of(full))
    joined, full_joined = ({name: torch.cat([p[name] for p in of]) for name in of[0]} for of in (parts, of_full))
    assert measure_evidence(joined, sample.reference, full_precision=full_joined, seed=3) == measure(sample, seed=3)
