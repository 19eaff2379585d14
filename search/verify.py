"""Plans against the uniform plan of the same bytes, measured on equal noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..aq.formats import Format
from ..errors import InputError
from ..progress import track
from .evaluate import Predictor


class Metric(Protocol):
    def to_json(self) -> dict[str, Any]: ...


class Measurement(Protocol):
    @property
    def metrics(self) -> Mapping[str, Metric]: ...


class Prober(Protocol):
    """What verification needs of a prober: all plans meet the same noise, so differences are paired."""

    def measure(self, plans: Sequence[Mapping[str, Format]], *, n_images: int, steps: int | None) -> Iterable[Any]:
        """In the order of the plans."""

    def worsening(self, a: Any, b: Any, metric: str) -> tuple[float, float, float]:
        """How much worse a is than b, with a 95 % interval; below zero, a is better."""


Refit = Callable[[Sequence[Any]], Predictor]  # measurements of a verification → the predictor refitted to them


@dataclass(frozen=True)
class Verification:
    """How many samplings, and of what.

    n: samplings at most, the uniform plan's included. refit: teaches the predictor what was measured; None: it stays as it is.
    n_images, steps: of each sampling; steps None: the subject's own.
    """

    n: int
    prober: Prober
    refit: Refit | None = None
    n_images: int = 512
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.n < 2:
            raise InputError(f"`verify` {self.n}: a verification measures the uniform plan and at least one other; use 0 or at least 2")

    def measure(self, plans: Sequence[Mapping[str, Format]]) -> list[Any]:
        return list(track(self.prober.measure(plans, n_images=self.n_images, steps=self.steps), "verify", len(plans)))

    def content(self, measurement: Measurement) -> dict[str, Any]:
        """As it stands in a plan."""
        metrics = {name: metric.to_json() for name, metric in measurement.metrics.items()}
        ruined = {"ruined": True} if getattr(measurement, "ruined", False) else {}
        return {"metrics": metrics, "n_images": self.n_images, "steps": self.steps, **ruined}
