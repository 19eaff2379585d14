"""What lies in the folders of models, and in the cache of a machine."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from .fields import Bits, Count, Inside, Number, Record, Size

Factors = dict[str, dict[str, Annotated[list[Number], Field(min_length=6, max_length=6)]]]


class Manifest(Record):
    files: dict[Inside, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


class Subject(Record):
    conditions: list[Annotated[int, Field(ge=0, lt=2**31)] | str] | None = None
    null_condition: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    extractor: str | None = None
    steps: Count | None = None
    guidance: Number | None = None
    max_tokens: Count | None = None
    batch_size: Count | None = None
    source: str | None = None


class Hash(Record):
    file: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Demo(Record):
    subject: str
    bits: Bits


class Weights(Record):
    fingerprint: str


class Tile(Record):
    model_config = ConfigDict(extra="forbid")
    tokens: Size
    rows: Count
    columns: Count
    warps: Count
    stages: Count


class GpuTiles(Record):
    device: str
    tiles: dict[str, Tile]


class Costs(Record):
    law: Factors


class RoundedInputs(Record):
    bits: Annotated[int, Field(ge=2, le=8)]
    scheme: str = "token"


class Quantization(Record):
    """A model's quantization_config, whose fields are the arguments of SedaqConfig."""

    model_config = ConfigDict(extra="forbid")
    quant_method: str = "sedaq"
    schema_: int = Field(alias="schema")
    fingerprint: str = ""
    layers: dict[str, str]
    kernel_costs: Costs | None = None
    activations: dict[str, RoundedInputs] = {}
    timestep_edges: list[Number] = []
    tied: dict[str, str] = {}
