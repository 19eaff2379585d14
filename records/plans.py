"""Plans, and what searches found."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from .fields import Bits, Count, Estimate, Interval, Number, Record, Sampled, Seed, Size


class Calibration(Sampled):
    seed: Seed = 0
    n_images: Annotated[int, Field(ge=0, le=10**9)] | None = None
    weighting: str = "uniform"
    spread: Annotated[float, Field(ge=0, lt=1)] = 0.0


class HowEncoded(Record):
    effort: str = ""
    seed: Seed = 0
    calibration: str = ""
    calibration_settings: Calibration = Calibration()


class PlanSubject(Record):
    name: str
    fingerprint: str
    components: list[str] = []


class PlannedLayer(Record):
    format: str
    activation_bits: Annotated[int, Field(ge=2, le=16)]
    activation_scheme: str | None = None

    @model_validator(mode="after")
    def _has_a_scheme(self) -> PlannedLayer:
        if self.activation_bits != 16 and self.activation_scheme is None:
            raise ValueError("must have a field 'activation_scheme'")
        return self


class Prediction(Record):
    metric: str
    value: Number | None
    std: Number | None
    full_precision: Number | None = None
    ms_per_step: Number | None = None


class Measured(Record):
    metrics: dict[str, Estimate]
    n_images: Count
    steps: Count | None = None
    tuned_steps: Count | None = None
    ruined: bool = False


class Undecided(Record):
    layers: list[str]
    takes: str
    other: str = Field(alias="or")
    margin: Number


class Provenance(Record):
    solver: str = ""
    seed: Seed = 0
    risk: Number = 0.0
    gap: Number | None = None
    trials: Size = 0
    gains: dict[str, Number] = {}
    undecided: list[Undecided] | dict[str, Any] = []
    notes: list[str] = []


class Plan(Record):
    subject: PlanSubject
    budget: dict[str, Number]
    layers: Annotated[dict[str, PlannedLayer], Field(min_length=1)]
    encoding: HowEncoded
    size_bytes: Size
    bits_per_weight: Bits
    predicted: Prediction | None
    measured: Measured | None
    provenance: Provenance


class Found(Record):
    """A row of the front."""

    bits_per_weight: Bits
    size_bytes: Size
    predicted: Prediction
    uniform_predicted: Prediction
    uniform_bits_per_weight: Bits
    measured: Measured | None
    uniform_measured: Measured | None
    difference_ci: Interval | None
    solver: str
    plan: Plan


class FoundBeside(Found):
    """What a search found, with the plan that it was held against."""

    uniform_plan: Plan


class Front(Record):
    plans: list[Found]
    run: str = ""


class Search(Record):
    found: Annotated[list[FoundBeside], Field(min_length=1)]
