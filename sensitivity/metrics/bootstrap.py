"""Resampling of images: standard errors of one set, and intervals of the difference between two that share their noise.

A statistic is a function of how often each of n images occurs, (n,) float64; all ones is the set itself. All sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MIN_IMAGES_A_CONDITION = 8  # for the bootstrap to draw within conditions

Statistic = Callable[[Tensor], float]


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, and the value on the first and on the second half of the images."""

    value: float
    se: float
    halves: tuple[float, float]

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """From what `resampled` gives, or from a difference of two such."""
        return cls(values[0].item(), values[3:].std().item(), (values[1].item(), values[2].item()))

    @classmethod
    def undefined(cls) -> Estimate:
        """Of images that are not finite."""
        return cls(math.nan, math.nan, (math.nan, math.nan))

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN: null."""
        value, se, *halves = (x if math.isfinite(x) else None for x in (self.value, self.se, *self.halves))
        return {"value": value, "se": se, "halves": halves}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Estimate:
        value, se, first, second = (math.nan if x is None else x for x in (content["value"], content["se"], *content["halves"]))
        return cls(value, se, (first, second))


def half_slices(n: int) -> tuple[slice, slice]:
    """The first and the second half of n images. Conditions cycle over the images, so both hold all of them; even and odd images would not."""
    return slice(0, n // 2), slice(n // 2, n)


def resamples(n: int, n_bootstrap: int, seed: int, cycle: int) -> Tensor:
    """How often each of n images occurs in each resample, (n_bootstrap, n) float64; image i is replaced by one of equal i mod `cycle`.

    Every set of images holds the conditions in equal parts, so resamples must too: without it the error is two to three times the spread over sets
    on mnist-dit (docs/experiments/probing-and-predictor.md).
    """
    rng = torch.Generator().manual_seed(seed)
    if n < MIN_IMAGES_A_CONDITION * cycle:  # too few to draw from: the error is then on the safe side
        cycle = 1
    condition = torch.arange(n) % cycle
    n_alike = (n - 1 - condition) // cycle + 1
    drawn = condition + cycle * (torch.rand(n_bootstrap, n, generator=rng, dtype=torch.float64) * n_alike).long()
    return torch.zeros(n_bootstrap, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(n_bootstrap, n, dtype=torch.float64))


def resampled(statistic: Statistic, counts: Tensor) -> Tensor:
    """The statistic of all images, of the first half, of the second, and of each resample in `counts` (n_bootstrap, n)."""
    first = torch.zeros(counts.shape[1], dtype=torch.float64)
    first[half_slices(len(first))[0]] = 1
    return torch.tensor([statistic(row) for row in (torch.ones_like(first), first, 1 - first, *counts)], dtype=torch.float64)


def difference(a: Statistic, b: Statistic, n: int, *, cycle: int = 1, n_bootstrap: int = 200, seed: int = 0) -> tuple[float, float, float]:
    """The statistic of a minus that of b with a 95 % interval, from a bootstrap over n images that are paired by their noise.

    A resample holds fewer distinct images than the sample, which moves a Fréchet distance away from the reference; the percentiles are therefore
    taken about the bootstrap mean. The interval is for the difference at this n, not for infinitely many images. For Fréchet distances it is right
    for d ≪ n and too wide for d near n: by 1.3 for n = 512, d = 128 on MNIST, against the spread over 24 disjoint sets of images.

    Args:
        a, b: of two sets of images; image i of both was sampled from the same noise.
        cycle: number of conditions; image i has condition i mod cycle.

    Returns:
        difference, low, high.
    """
    once = torch.ones(n, dtype=torch.float64)
    value = a(once) - b(once)
    drawn = torch.tensor([a(counts) - b(counts) for counts in resamples(n, n_bootstrap, seed, cycle)], dtype=torch.float64)
    low, high = torch.quantile(drawn - drawn.mean(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return value, value + low, value + high
