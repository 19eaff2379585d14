"""What was measured in the end: comparisons, evaluations and tunings."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, model_validator

from .fields import Bits, Count, Estimate, Interval, Looks, Number, Record, Seed, Size


class Difference(Record):
    value: Number
    ci: Interval


class Compared(Record):
    """The metric stands under its own name."""

    model_config = ConfigDict(extra="allow")
    bits: Bits
    method: str
    bits_per_weight: Bits
    size_bytes: Size
    excess: Difference
    over_uniform: Difference
    over_searched: Difference
    solver: str | None


class Conditions(Record):
    n_images: Count
    steps: Count | None
    seeds: Count
    metric: str = "fid"


class Contest(Record):
    rows: list[Compared]
    conditions: Conditions
    run: str = ""

    @model_validator(mode="after")
    def _holds_its_metric(self) -> Contest:
        metric = self.conditions.metric
        if not all(isinstance((row.model_extra or {}).get(metric), (int, float)) for row in self.rows):
            raise ValueError(f"must hold a number {metric} in every row")
        return self


class EvaluationResult(Record):
    metrics: dict[str, Estimate | None]
    n_images: Count
    steps: Count | None
    seed: Seed = 0
    extractor: str = ""
    reference: str | None = None
    seconds: Number = 0.0


class Evaluation(EvaluationResult):
    key: str = ""
    name: str
    size_bytes: Size
    bits_per_weight: Bits
    tune_steps: Size = 0
    run: str = ""


class Tuning(Record):
    name: str
    plan_hash: str
    held_out_losses: Looks
    settings: dict[str, bool | str | int | float | list[Any] | None] = {}
    ending: str
    seconds: Number
    run: str = ""
