"""What the headers of tensor files say of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, Strict

from .fields import Count, Looks, Number, Record, Seed, Shape, Size


class Hessian(Record):
    layer: str
    calibration: str


class Encoded(Record):
    format: str
    shape: Shape
    error: Number | None
    provenance: dict[str, str | int | Number]


class Encoding(Encoded):
    error: Number


class Book(Record):
    format: str


class Gradients(Record):
    identity: str
    why_not: str | None


class Features(Record):
    key: str


class Extractor(Record):
    name: str
    fingerprint: str


class Reference(Record):
    n_images: Annotated[int, Field(ge=2, le=10**12)]
    description: str
    fingerprint: str
    extractor: Extractor


class Grids(Record):
    order: list[str]
    run: str = ""


class Inputs(Record):
    choices: dict[str, Annotated[tuple[int, str], Strict(False)]]
    edges: list[Number]


class Tuned(Record):
    encodings: dict[str, Encoded]
    inputs: Inputs | None
    losses: Looks
    ending: str
    lost: Number | None


class TuningState(Record):
    losses: Looks
    n_refreshes: Size
    step: Size
    n_steps: Count
    looks_without_gain: Size
    best_loss: Number


class Owner(Record):
    name: str
    fingerprint: str


class Recording(Record):
    purpose: str
    n_images: Count
    start: Size
    seed: Seed
    steps: Count | None
    settings: dict[str, Any]


class Replay(Record):
    subject: Owner
    recording: Recording
    fixed: dict[str, Any]
    paths: list[str] = []
    dtypes: dict[str, str] = {}
    call_lengths: list[Count]
