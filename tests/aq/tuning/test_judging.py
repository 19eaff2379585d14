"""Whether images of a tuned model are better: a distance of patches, and what is handed out by it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format
from sedaq.aq.tuning import judging
from sedaq.aq.tuning.judging import images_got_worse, patch_distance
from sedaq.aq.tuning.tune import tune
from sedaq.aq.tuning.tuned import Tuned
from sedaq.models.sampling import SamplingConfig
from sedaq.models.trace import Recording


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_images_are_no_distance_from_themselves():
    images = noise(0, 8, 3, 40, 33)
    assert patch_distance(images, images) == 0


def test_a_shift_of_normal_noise_has_a_closed_form():
    """Patches have 49 numbers of variance 1, so that a direction sees a shift s as s · Σ d, and E|Σ d| = √(2/π) for unit vectors of many numbers."""
    images = noise(0, 64, 1, 12, 12)  # one level
    assert patch_distance(images, images + 0.5) == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.1)


def test_the_distance_does_not_depend_on_the_scale_of_images():
    images, others = noise(0, 8, 2, 32, 32), noise(1, 8, 2, 32, 32) * 1.2
    assert patch_distance(10 * images + 3, 10 * others + 3) == pytest.approx(patch_distance(images, others), rel=1e-3)


def test_more_damage_is_farther():
    images = torch.nn.functional.avg_pool2d(noise(0, 16, 1, 64, 64), 5, stride=1, padding=2)
    blurred = [torch.nn.functional.avg_pool2d(images, size, stride=1, padding=size // 2) for size in (3, 7, 15)]
    noisy = [images + amount * noise(1, *images.shape) for amount in (0.01, 0.05, 0.2)]
    for damaged in (blurred, noisy):
        distances = [patch_distance(images, one) for one in damaged]
        assert distances == sorted(distances) and distances[0] > 0


def test_other_images_of_the_same_kind_are_nearer_than_spoilt_ones():
    """Distributions count, not pairs."""
    images, others = (torch.nn.functional.avg_pool2d(noise(seed, 64, 1, 32, 32), 3, stride=1, padding=1) for seed in (0, 1))
    assert patch_distance(images, others) < patch_distance(images, images * 0.7)


def test_frames_are_images():
    videos, others = noise(0, 4, 3, 1, 20, 20), noise(1, 4, 3, 1, 20, 20)
    assert patch_distance(videos, others) == patch_distance(videos.flatten(0, 1), others.flatten(0, 1))


def answers(*distances: float) -> Callable[..., float]:
    """A patch_distance that says these, one after the other."""
    left = iter(distances)
    return lambda *_: next(left)


@pytest.fixture
def fine_and_coarse(subject) -> tuple[Tuned, Tuned]:
    weights = {layer.name: subject.weight(layer.name) for layer in subject.layers}
    return tuple(Tuned({name: encode(w, Format.parse(text)) for name, w in weights.items()}, {}) for text in ("int8", "1x2g8"))


def test_the_model_whose_images_are_farther_is_found_out(subject, fine_and_coarse):
    fine, coarse = fine_and_coarse
    recording = Recording("tune", 64, sampling=SamplingConfig(steps=4))
    assert images_got_worse(subject, fine, coarse, recording, 64).startswith("images got worse (")
    assert images_got_worse(subject, coarse, fine, recording, 64) == ""
    assert images_got_worse(subject, coarse, coarse, recording, 64) == ""


def test_images_that_are_no_numbers_are_farthest(subject, fine_and_coarse, monkeypatch):
    fine, _ = fine_and_coarse
    recording = Recording("tune", 16, sampling=SamplingConfig(steps=2))
    for distances, worse in (((math.nan, 0.1), False), ((0.1, math.nan), True), ((math.nan, math.nan), False)):
        monkeypatch.setattr(judging, "patch_distance", answers(*distances))
        assert bool(images_got_worse(subject, fine, fine, recording, 64)) == worse


def test_a_tuning_that_spoils_images_is_not_handed_out(subject, encodings, small, monkeypatch):
    monkeypatch.setattr(judging, "patch_distance", answers(0.1, 0.12))
    tuned = tune(subject, encodings, small)
    assert tuned.losses[-1][1] < tuned.losses[0][1]
    assert (
        tuned.ending == "images got worse (0.1 to 0.12 from full precision's) while the held-out loss fell, so what came in is handed out"
    )
    assert tuned.others == {} and all(tuned.encodings[name] is encodings[name] for name in encodings)
    unseen = tune(subject, encodings, dataclasses.replace(small, judged_images=0))
    assert unseen.ending == "" and unseen.others, "nobody looked"
