"""Distances against closed forms, brute force and simulation."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from sedaq.errors import InputError, SedaqError
from sedaq.sensitivity.metrics.bootstrap import Estimate
from sedaq.sensitivity.metrics.fidelity import (
    MAX_PSNR,
    agreement,
    clip_score,
    feature_distance,
    inception_score,
    kernel_distance,
    psnr,
)
from sedaq.sensitivity.metrics.frechet import Statistics, frechet_distance
from sedaq.sensitivity.metrics.registry import measure
from sedaq.sensitivity.metrics.sample import Features, Reference, Sample

from .gaussians import reference_of, samples


def test_bootstrap_error_is_the_spread_over_fresh_samples() -> None:
    # A pure shift m: the distance is about |m|², its standard deviation 2 |m| / √n.
    n, reference = 400, reference_of(samples(4000, 2, 99))
    runs = [
        measure(Sample(torch.zeros(n, 1, 1, 1), Features(samples(n, 2, seed, mean=1.0)), reference), seed=seed, n_bootstrap=50)["fid"]
        for seed in range(40)
    ]
    mean_se = sum(run.se for run in runs) / len(runs)
    assert mean_se == pytest.approx(2 * math.sqrt(2) / math.sqrt(n), rel=0.15)
    assert torch.tensor([run.value for run in runs]).std().item() == pytest.approx(mean_se, rel=0.4)


def test_kernel_distance_against_brute_force() -> None:
    x, y = samples(6, 3, 0).double(), samples(6, 3, 1, mean=0.3).double()

    def k(a: Tensor, b: Tensor) -> float:
        return (torch.dot(a, b).item() / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs) / 30
    expected = within - 2 * sum(k(a, b) for a in x for b in y) / 36
    value, se = kernel_distance(x, y, n_subsets=3, subset_size=6, seed=0)
    assert value == pytest.approx(expected)
    assert se == pytest.approx(0, abs=1e-12)  # every subset is the whole


def test_kernel_distance_is_unbiased_for_equal_distributions() -> None:
    values = torch.tensor(
        [kernel_distance(samples(20, 4, s), samples(20, 4, 5000 + s), n_subsets=2, subset_size=20, seed=0)[0] for s in range(400)]
    )
    assert abs(values.mean().item()) < 3 * values.std().item() / 20
    assert values.min() < 0


def test_kernel_distance_refuses_subsets_that_are_too_large() -> None:
    with pytest.raises(InputError, match="2 to 5"):
        kernel_distance(samples(5, 2, 0), samples(9, 2, 0), n_subsets=2, subset_size=6, seed=0)


def test_psnr_closed_form_and_cap() -> None:
    images = torch.full((3, 1, 4, 4), 0.5)
    changed = images + torch.tensor([0.0, 0.1, -0.01]).view(3, 1, 1, 1)
    torch.testing.assert_close(psnr(changed, images), torch.tensor([MAX_PSNR, 20.0, 40.0]).double(), rtol=0, atol=1e-4)


def test_feature_distance_has_no_unit() -> None:
    reference = samples(9, 5, 0)
    assert feature_distance(reference, reference).max() == 0
    assert feature_distance(torch.zeros_like(reference), reference).mean().item() == pytest.approx(1)
    torch.testing.assert_close(feature_distance(2 * reference + 2, 2 * reference), feature_distance(reference + 1, reference))


def test_agreement_and_inception_score() -> None:
    logits = 100 * torch.eye(4)
    assert agreement(logits, torch.tensor([0, 1, 2, 0])).tolist() == [1, 1, 1, 0]
    assert inception_score(logits) == pytest.approx(4)  # certain and diverse
    assert inception_score(torch.zeros(4, 4)) == pytest.approx(1)  # uncertain
    assert inception_score(logits[:1].repeat(4, 1)) == pytest.approx(1)  # always the same


def test_measure_names_halves_and_repeatability() -> None:
    n = 40
    features = Features(samples(n, 3, 0), samples(n, 5, 1), samples(n, 10, 2))
    images, requested = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 10
    reference = Reference(Statistics.of(samples(90, 3, 3)), samples(30, 3, 4), Statistics.of(samples(90, 5, 5)), "test", "0")
    full_precision = Sample(images * 0.9, features[torch.arange(n)], reference)
    metrics = measure(Sample(images, features, reference, requested, full_precision), seed=7)
    assert set(metrics) == {"fid", "fid_excess", "sfid", "kid", "agreement", "psnr", "feature_distance"}
    assert metrics["fid"].value == pytest.approx(frechet_distance(Statistics.of(features.pooled), reference.statistics))
    assert metrics["fid"].halves[1] == pytest.approx(
        frechet_distance(Statistics.of(features.pooled[len(features) // 2 :]), reference.statistics)
    )
    right = (features.logits.argmax(1) == requested).double() if features.logits is not None else torch.zeros(n)
    assert metrics["agreement"].value == pytest.approx(right.mean().item())
    assert metrics["agreement"].halves == pytest.approx((right[: len(right) // 2].mean().item(), right[len(right) // 2 :].mean().item()))
    assert metrics["agreement"].se == pytest.approx(right.std().item() / n**0.5)
    again = measure(Sample(images, features, reference), seed=7)
    assert set(again) == {"fid", "sfid", "kid"} and all(again[name] == metrics[name] for name in again)


def test_measure_gives_the_inception_score_in_place_of_agreement() -> None:
    features = Features(samples(8, 2, 0), None, samples(8, 1008, 1))
    metrics = measure(Sample(torch.zeros(8, 3, 2, 2), features, reference_of(samples(9, 2, 2)), torch.arange(8)), seed=0)
    assert "inception_score" in metrics and "agreement" not in metrics


def test_clip_score_is_the_cosine_in_percent_and_never_negative() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    scores = clip_score(images, torch.tensor([[2.0, 0.0]]).expand(3, 2))
    torch.testing.assert_close(scores, torch.tensor([100.0, 100 / 2**0.5, 0.0]).double())


def test_measure_scores_images_against_their_prompts() -> None:
    features = Features(samples(8, 2, 0), embeddings=samples(8, 5, 1))
    prompts = samples(8, 5, 2)
    metrics = measure(Sample(torch.zeros(8, 3, 2, 2), features, reference_of(samples(9, 2, 2)), prompts), seed=0)
    assert metrics["clip_score"].value == pytest.approx(clip_score(features.embeddings, prompts).mean().item())
    assert "agreement" not in metrics
    classes = measure(Sample(torch.zeros(8, 3, 2, 2), features, reference_of(samples(9, 2, 2)), torch.arange(8)), seed=0)
    assert "clip_score" not in classes


def test_a_sample_refuses_too_few_images_and_broken_features() -> None:
    reference = reference_of(samples(9, 2, 2))
    with pytest.raises(InputError, match="at least 4"):
        Sample(torch.zeros(3, 1, 2, 2), Features(samples(3, 2, 0)), reference)
    with pytest.raises(SedaqError, match="not finite"):
        Sample(torch.zeros(4, 1, 2, 2), Features(torch.full((4, 2), torch.inf)), reference)


def test_an_estimate_survives_json() -> None:
    estimate = Estimate(1.5, 0.25, (1.0, 2.0))
    assert Estimate.from_json(json.loads(json.dumps(estimate.to_json()))) == estimate


def test_features_slice_and_join() -> None:
    features = Features(samples(6, 2, 0), None, samples(6, 3, 1))
    joined = Features.cat([features[:2], features[2:]])
    assert len(joined) == 6 and joined.spatial is None and joined.logits is not None and features.logits is not None
    assert joined.pooled.equal(features.pooled) and joined.logits.equal(features.logits)


def test_the_excess_is_paired_with_full_precision() -> None:
    n, reference = 200, reference_of(samples(4000, 2, 99))
    full = Features(samples(n, 2, 0) + 1)
    images = torch.rand(n, 1, 2, 2)
    whole = Sample(images, full, reference)
    same = measure(Sample(images, full, reference, full_precision=whole), seed=0)["fid_excess"]
    assert (same.value, same.se, same.halves) == (0.0, 0.0, (0.0, 0.0))
    worse = measure(Sample(images, Features(1.1 * full.pooled), reference, full_precision=whole), seed=0)
    alone = measure(whole, seed=0)["fid"]
    assert worse["fid_excess"].value == pytest.approx(worse["fid"].value - alone.value)
    assert worse["fid_excess"].se < 0.5 * worse["fid"].se
