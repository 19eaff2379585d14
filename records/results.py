"""What was measured in the end: comparisons, evaluations and tunings."""

from __future__ import annotations

from .fields import Bits, Count, Estimate, Interval, Looks, Number, Record, Seed, Size


class Difference(Record):
    value: Number
    ci: Interval


class Compared(Record):
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
    ending: str
    seconds: Number
    run: str = ""
