"""Candidates against the uniform plan of the same bytes, measured on equal noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..aq.formats import Format
from ..errors import InputError
from ..progress import track

PURPOSE = "verify"


class Metric(Protocol):
    def to_json(self) -> dict[str, Any]: ...


class Measurement(Protocol):
    @property
    def metrics(self) -> Mapping[str, Metric]: ...


M = TypeVar("M", bound=Measurement)


class Prober(Protocol[M]):
    """What verification needs of a prober: equal purpose means equal noise, so differences are paired."""

    def measure(self, formats: Mapping[str, Format], *, purpose: str, n_images: int, steps: int | None) -> M: ...

    def difference(self, a: M, b: M) -> tuple[float, float, float]: ...


@dataclass(frozen=True)
class Verdict:
    """What measuring said. `winner` indexes the candidates, None where none of them is better than uniform."""

    winner: int | None
    measured: dict[str, Any]  # of what is handed out
    uniform_measured: dict[str, Any]
    difference: tuple[float, float, float]  # best candidate minus uniform, with its 95 % interval


def check_verify(verify: int, prober: object | None) -> None:
    """Raise InputError unless `verify` samplings can be done."""
    if verify < 0 or verify == 1:
        raise InputError(f"--verify {verify}: a verification measures the uniform plan and at least one candidate; use 0 or at least 2")
    if verify and prober is None:
        raise InputError(f"--verify {verify}: there is nothing to measure with; pass a prober")


def verify_candidates(
    prober: Prober[Any], candidates: Sequence[Mapping[str, Format]], uniform: Mapping[str, Format], *, n_images: int, steps: int | None
) -> Verdict:
    """Measure the uniform plan and every candidate, and name the one with the least paired difference, if that is below zero.

    The interval is of the chosen one on the images that chose it: with few candidates on equal noise the optimism is small, and
    `sedaq evaluate` gives figures on other noise.
    """

    def measure(formats: Mapping[str, Format]) -> Any:
        return prober.measure(formats, purpose=PURPOSE, n_images=n_images, steps=steps)

    def content(measurement: Any) -> dict[str, Any]:
        return {"metrics": {name: metric.to_json() for name, metric in measurement.metrics.items()}, "n_images": n_images, "steps": steps}

    reference, *measurements = [measure(formats) for formats in track([uniform, *candidates], "verify")]
    differences = [prober.difference(measurement, reference) for measurement in measurements]
    best = min(range(len(candidates)), key=lambda index: differences[index][0])
    better = differences[best][0] < 0
    return Verdict(best if better else None, content(measurements[best] if better else reference), content(reference), differences[best])
