"""Plans against the uniform plan of the same bytes, measured on equal noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..aq.formats import Format
from ..errors import InputError
from ..progress import track
from ..sensitivity.metrics.registry import metric_of
from .config import check_verify
from .evaluate import Predictor

FACTOR = 3  # times the steps of tuning from rung to rung, and one plan in so many goes on
CLEAR = 2  # standard errors, from which on a loss is told from noise


class Metric(Protocol):
    @property
    def value(self) -> float: ...

    @property
    def se(self) -> float: ...

    def to_json(self) -> dict[str, Any]: ...


class Measurement(Protocol):
    @property
    def metrics(self) -> Mapping[str, Metric]: ...


def overflowed(measurement: Measurement, metric: str) -> bool:
    """Whether the images were not finite, so that there is no such metric of them."""
    found = measurement.metrics.get(metric_of(metric).excess_name) or measurement.metrics.get(metric)
    return found is None or not math.isfinite(found.value)


def loss_and_distance(measurement: Measurement, metric: str) -> tuple[float, float]:
    """What plans are ordered by, the best first: what a plan loses by the metric, and how far its images are from full precision's.

    Of a distance to real images what counts is its excess over full precision's, and none where that is not clear of noise: nothing is gained by
    images that are nearer to real ones than full precision's. A plan that is off can be so in few steps of sampling, and far from them in many
    (docs/experiments/search.md).
    """
    known, metrics = metric_of(metric), measurement.metrics
    excess, distance = metrics.get(known.excess_name), metrics.get("feature_distance")
    if overflowed(measurement, metric):
        return math.inf, math.inf
    value = known.sign * (metrics[metric] if excess is None else excess).value
    if excess is None:
        return value, 0.0
    return (value if value > CLEAR * excess.se else 0.0), (distance.value if distance else 0.0)


@dataclass(frozen=True)
class Rung:
    """How plans are measured.

    n_images, steps: of the sampling; steps None: the subject's own. tuned_steps: of tuning, after which plans are sampled.
    """

    n_images: int = 512
    steps: int | None = None
    tuned_steps: int = 0


def rungs_to(first: Rung, tuned_steps: int) -> tuple[Rung, ...]:
    """From a rung on to so many steps of tuning: each has FACTOR times the steps of the one before, and twice its images.

    Raises InputError where the first rung has more steps.
    """
    if tuned_steps < first.tuned_steps:
        raise InputError(
            f"`tune_steps`: got {tuned_steps}; plans were probed after {first.tuned_steps} steps of tuning, give as many or more"
        )
    rungs = [first]
    while (last := rungs[-1]).tuned_steps < tuned_steps:
        rungs.append(replace(last, n_images=2 * last.n_images, tuned_steps=min(FACTOR * last.tuned_steps, tuned_steps)))
    return tuple(rungs)


class Prober(Protocol):
    """What verification needs of a prober: all plans meet the same noise, so differences are paired."""

    def measure(self, plans: Sequence[Mapping[str, Format]], rung: Rung) -> Iterable[Any]:
        """In the order of the plans."""

    def worsening(self, a: Any, b: Any, metric: str) -> tuple[float, float, float]:
        """How much worse a is than b, with a 95 % interval; below zero, a is better."""


Refit = Callable[[Sequence[Any]], Predictor]  # measurements of a verification → the predictor refitted to them


@dataclass(frozen=True)
class Verification:
    """How many samplings, and of what.

    n: plans at most, the uniform one included. refit: teaches the predictor what was measured on the first rung; None: it stays as it is.
    rungs: how plans are measured: all of them on the first, the best of these on the next, and so on.
    """

    n: int
    prober: Prober
    refit: Refit | None = None
    rungs: tuple[Rung, ...] = (Rung(),)

    def __post_init__(self) -> None:
        check_verify(self.n)

    def measure(self, plans: Sequence[Mapping[str, Format]], rung: Rung | None = None) -> list[Any]:
        """On the first rung, unless told otherwise."""
        return list(track(self.prober.measure(plans, rung or self.rungs[0]), "verify", len(plans)))

    def content(self, measurement: Measurement) -> dict[str, Any]:
        """As it stands in a plan, of a measurement on the last rung."""
        rung = self.rungs[-1]
        metrics = {name: metric.to_json() for name, metric in measurement.metrics.items()}
        ruined = {"ruined": True} if getattr(measurement, "ruined", False) else {}
        tuned = {"tuned_steps": rung.tuned_steps} if rung.tuned_steps else {}
        return {"metrics": metrics, "n_images": rung.n_images, "steps": rung.steps, **tuned, **ruined}
