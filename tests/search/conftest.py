"""Small problems, a small subject, and stand-ins for predictor and prober."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import Entry, heuristic_menus
from sedaq.models.subject import Subject
from sedaq.search.problem import Problem, Unit
from sedaq.search.verify import Rung
from sedaq.sensitivity.metrics.registry import metric_of

FORMATS = [Format.parse(f"1x{bits}g{group}") for group in (4, 3, 2) for bits in range(3, 9)]


def random_problem(rng: np.random.Generator, n_units: int, n_options: int, *, tied: bool = False) -> Problem:
    """Rising sizes, costs that mostly fall; file bytes are not in the order of weight bytes."""
    units = []
    for unit in range(n_units):
        names = tuple(f"l{unit}.{i}" for i in range(2 if tied and unit % 3 == 0 else 1))
        k = int(rng.integers(1, n_options + 1))
        columns = []
        for _ in names:
            sizes = np.sort(rng.choice(np.arange(10, 400), k, replace=False))
            columns.append([Entry(float(i + 1), FORMATS[i], int(s), int(s + rng.integers(0, 60))) for i, s in enumerate(sizes)])
        costs = np.sort(rng.gamma(0.5, 1.0, k))[::-1] + rng.normal(0, 0.05, k)
        nanoseconds = rng.integers(1, 200, k)  # in no order
        units.append(Unit(names, tuple(zip(*columns, strict=True)), tuple(map(float, costs)), tuple(map(int, nanoseconds))))
    return Problem(tuple(units), n_weights=n_units * 400, fixed_file_bytes=100, fixed_nanoseconds=50)


def large_problem(n_units: int = 803, n_options: int = 8) -> Problem:
    """Shapes and costs as spread as those of a large UNet: four orders of magnitude."""
    rng = np.random.default_rng(5)
    units = []
    for unit in range(n_units):
        n_weights = int(10 ** rng.uniform(4, 7))
        rates = np.linspace(1.5, 5, n_options) + rng.uniform(0, 0.2, n_options)
        entries = tuple((Entry(float(r), FORMATS[k], int(n_weights * r / 8), int(n_weights * r / 8) + 250),) for k, r in enumerate(rates))
        costs = 10 ** rng.normal(-3, 1) * 4.0**-rates * rng.uniform(0.9, 1.1, n_options)
        units.append(Unit((f"layer{unit}",), entries, tuple(costs)))
    n_weights = sum(int(unit.options[0][0].size_bytes * 8 / unit.options[0][0].rate) for unit in units)
    return Problem(tuple(units), n_weights, 10_000)


@dataclass
class FakePredictor:
    """Additive costs by layer and bits, and a penalty for neighbours whose costs are both high: not additive."""

    sensitivity: dict[str, float]
    interaction: float = 0.5
    metric: str = "fid"
    n_calls: int = 0

    def additive_cost(self, name: str, entry: Entry) -> float:
        return self.sensitivity.get(name, 1.0) * 4.0 ** -min(entry.rate, 8.0)

    def member_costs(self, name: str, entry: Entry) -> np.ndarray:
        return self.additive_cost(name, entry) * np.array([0.8, 1.0, 1.2])

    def predict(self, choices: Sequence[Mapping[str, Entry]]) -> tuple[np.ndarray, np.ndarray]:
        self.n_calls += 1
        costs = np.array([[self.additive_cost(name, entry) for name, entry in choice.items()] for choice in choices])
        mean = costs.sum(axis=1) + self.interaction * np.sqrt(costs[:, 1:] * costs[:, :-1]).sum(axis=1)
        return mean, 0.1 * mean


@dataclass
class Value:
    value: float
    se: float = 0.1

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "se": self.se}


@dataclass
class FakeMeasurement:
    metrics: dict[str, Value]


class FakeProber:
    """Fidelity by `metric` is what `score` says of the formats."""

    def __init__(self, score: Any, metric: str = "fid") -> None:
        self.score, self.metric, self.measured = score, metric, []

    def measure(self, plans: Sequence[Mapping[str, Format]], rung: Rung) -> list[FakeMeasurement]:
        self.measured += [dict(formats) for formats in plans]
        return [FakeMeasurement({self.metric: Value(self.score(formats))}) for formats in plans]

    def worsening(self, a: FakeMeasurement, b: FakeMeasurement, metric: str) -> tuple[float, float, float]:
        value = metric_of(metric).sign * (a.metrics[metric].value - b.metrics[metric].value)
        return value, value - 0.1, value + 0.1


@pytest.fixture(scope="session")
def subject() -> Subject:
    torch.manual_seed(0)
    widths = [64, 96, 128, 128, 128, 96, 8]
    blocks = [nn.Linear(a, b) for a, b in pairwise(widths)]
    denoiser = nn.Sequential(*blocks, nn.LayerNorm(8))
    stored = dict.fromkeys(denoiser.state_dict(), torch.float16)
    return Subject(denoiser, sample=lambda **_: torch.zeros(1, 1, 1, 1), name="small", stored_dtypes=stored)


@pytest.fixture(scope="session")
def menu(subject: Subject) -> dict[str, tuple[Entry, ...]]:
    return heuristic_menus(subject)


@pytest.fixture
def predictor(subject: Subject) -> FakePredictor:
    return FakePredictor({layer.name: float(8.0 ** (i % 3)) * layer.n_weights / 1e4 for i, layer in enumerate(subject.layers)})
