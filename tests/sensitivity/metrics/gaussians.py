"""Features that are Gaussian, and references of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sedaq.sensitivity.metrics.frechet import Statistics
from sedaq.sensitivity.metrics.sample import Reference


def gaussian(mean: Tensor, covariance: Tensor) -> Statistics:
    return Statistics(101, mean.double(), covariance.double() * 100)


def samples(n: int, d: int, seed: int, *, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def reference_of(features: Tensor) -> Reference:
    return Reference(Statistics.of(features), features, None, "test", "0")
