"""Probes move away from plans that are ruined, and a run that has many says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sedaq.aq.formats import Format
from sedaq.aq.plans.menu import Entry
from sedaq.models.layers import Layer
from sedaq.sensitivity.metrics.bootstrap import Estimate
from sedaq.sensitivity.metrics.fidelity import feature_distance
from sedaq.sensitivity.probing.designs import design_plans
from sedaq.sensitivity.probing.measurer import PlanTask
from sedaq.sensitivity.probing.prober import is_ruined
from sedaq.sensitivity.probing.ruined import lowest_useful_rate, plans_above

RATES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
FORMATS = [Format.parse(text) for text in ("1x3g2", "1x4g2", "1x5g2", "1x6g2", "1x7g2", "1x8g2")]
LAYERS = [Layer(f"l{i}", "role", "", "linear", (8, 8)) for i in range(20)]
MENU = (
    *(Entry(rate, format, 10 * i, 10 * i) for i, (rate, format) in enumerate(zip(RATES, FORMATS, strict=True), start=1)),
    Entry(8.0, Format("int8"), 80, 80),
    Entry(16.0, Format("asis"), 160, 160),
)


def run_of(n_layers: int = 20) -> Any:
    layers = LAYERS[:n_layers]
    settings = SimpleNamespace(rates=RATES, n_images=16, seed=0)
    return SimpleNamespace(menus={layer.name: MENU for layer in layers}, settings=settings, subject=SimpleNamespace(layers=layers))


class Measurer:
    """Plans with a mean rate below a bound are ruined."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def measure(self, tasks: Sequence[PlanTask]) -> Iterator[tuple[int, Any]]:
        for index, task in enumerate(tasks):
            rates = [next(e.rate for e in MENU if e.format == format) for format in task.formats.values()]
            yield index, SimpleNamespace(ruined=sum(rates) / len(rates) < self.bound)


@pytest.mark.parametrize(("bound", "floor"), [(0.0, None), (1.6, None), (2.1, None), (2.6, 3.0), (3.1, 3.5), (4.1, 8.0), (20.0, 8.0)])
def test_the_floor_is_where_uniform_plans_are_no_longer_ruined(bound: float, floor: float | None) -> None:
    """One or two ruined rates of six are no reason to move."""
    assert lowest_useful_rate(run_of(), Measurer(bound)) == floor  # type: ignore[arg-type]


def test_plans_above_the_floor() -> None:
    run = run_of()
    uniform = design_plans("stratified", run.subject.layers, run.menus, n_plans=8, seed=0)
    plans = plans_above(3.0, run, uniform, 40)
    assert plans[:8] == uniform and len(plans) == 40
    assert plans_above(3.0, run, uniform, 24) == plans[:24], "a shorter design is the beginning of a longer one"
    rate = {entry.format: entry.rate for entry in MENU}
    low = [sum(rate[format] < 3.0 for format in plan.values()) for plan in plans[8:]]
    assert low.count(0) >= 20 and 0 < sum(n > 0 for n in low) <= 12 and max(low) <= 3
    assert len({tuple(map(str, plan.values())) for plan in plans}) == 40


def sample(images: torch.Tensor, cycle: int = 1) -> Any:
    return SimpleNamespace(cycle=cycle, features=SimpleNamespace(pooled=images))


def test_when_images_are_ruined() -> None:
    """Further from their own than these are from each other, or not finite."""
    features = torch.eye(4)
    apart = (features - features.roll(1, 0)).norm(dim=1).mean().item()
    for distance, expected in ((0.0, False), (0.5 * apart, False), (1e6, True), (float("nan"), True)):
        assert is_ruined({"feature_distance": Estimate(distance, 0.0, (distance, distance))}, sample(features)) == expected
    assert is_ruined({}, sample(features))


def test_ruined_images_are_held_against_others_of_their_conditions() -> None:
    """Two classes far apart: an image as far from its own as another of its class is ruined, however far the other class is."""
    classes = torch.tensor([[0.0, 0.0], [100.0, 0.0]]).repeat(4, 1)
    features = classes + torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    within = feature_distance(features, features.roll(2, 0)).mean().item()
    for distance, expected in ((0.5 * within, False), (2 * within, True)):
        assert is_ruined({"feature_distance": Estimate(distance, 0.0, (distance, distance))}, sample(features, cycle=2)) == expected
