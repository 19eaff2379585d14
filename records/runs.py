"""What a run holds beside its fit and its plans: settings, outline, measurements, menus and times."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict, model_validator

from .fields import Bits, Count, Estimate, Halves, Number, Record, Sampled, Seed, Shape, Size, within_memory
from .folders import Costs


class Settings(Sampled):
    seed: Seed = 0
    n_images: Count = 1
    extractor: str | None = None
    reference: str | None = None
    exclude: list[str] = []
    components: list[str] = []
    rates: Annotated[list[Annotated[float, Field(ge=1, le=16)]], Field(min_length=1)] = [2.0]
    effort: str = "fast"
    calibration_images: Annotated[int, Field(ge=0, le=10**9)] | None = None
    calibration_steps: Count | None = None
    reference_images: Count = 1
    weighting: str = "uniform"


class RunSubject(Record):
    name: str
    fingerprint: str
    model_fingerprint: str = ""
    argument: str | None
    files: dict[str, str] = {}


class Stage(Record):
    description: str
    done: Number
    total: Number
    elapsed: Number
    remaining: Number | None


class Status(Record):
    """What a command is at."""

    verb: str
    host: str
    pid: Count
    began: Number
    told: Number
    workers: Size
    stages: list[Stage]
    warnings: list[str]


class Run(Record):
    subject: RunSubject
    settings: Settings
    batch_size: Count | None = None


class OutlinedLayer(Record):
    name: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f]{1,200}$")]  # files are named by it
    role: str
    block: str
    kind: str
    shape: Shape
    groups: Annotated[int, Field(ge=1, lt=2**31)]


Dtype = Literal[
    "bool", "uint8", "int8", "float8_e5m2", "float8_e4m3fn", "int16", "float16", "bfloat16", "int32", "float32", "float64", "int64"
]
Spec = Annotated[tuple[Dtype, Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], AfterValidator(within_memory)]], Strict(False)]


class Outline(Record):
    name: str
    fingerprint: str
    model_fingerprint: str
    prefixes: list[str]
    named_components: list[str]
    layers: Annotated[list[OutlinedLayer], Field(min_length=1)]
    tensors: dict[str, Spec]
    weights: dict[str, str]

    @model_validator(mode="after")
    def _is_complete(self) -> Outline:
        for layer in self.layers:
            if f"{layer.name}.weight" not in self.tensors or layer.name not in self.weights:
                raise ValueError(f"must hold the weight of layer {layer.name}")
        return self


class Halved(Estimate):
    halves: Halves


class Probe(Record):
    key: str
    plan_hash: str
    purpose: str
    layers: dict[str, str]
    bits_per_weight: Bits
    seed: Seed
    n_images: Count
    steps: Count | None
    tuned_steps: Size = 0
    extractor: str
    reference: str
    metrics: dict[str, Halved]
    ruined: bool = False
    run: str = ""


class Probing(Record):
    n_plans: Size
    rankings: list[Number]
    stable: bool


class Choice(Record):
    format: str
    error: Number


class Menu(Record):
    """Of a layer."""

    chosen: dict[Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")], Choice]
    tried: dict[str, Number]


class SharedMenu(Record):
    """Of the layers of a role at one rate."""

    chosen: str | None
    tried: str
    gain: Number | None


class Traits(Record):
    identity: str
    why_no_gradients: str | None
    layers: dict[str, dict[str, Annotated[list[Number], Field(min_length=3, max_length=3)]]]


class Properties(Record):
    """What is observed of layers, by layer and property; what is not known has no entry."""

    identity: str
    layers: dict[str, dict[str, Number]]
    why_not: list[str]


class Activations(Record):
    damages: dict[str, list[Annotated[tuple[int, str, Number], Strict(False)]]]


class StepTimes(Record):
    tokens: dict[str, list[Count]]
    dense: dict[str, Size]
    beyond: dict[str, int]
    rest: int
    law: Costs
    subject: str = ""
