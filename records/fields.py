"""The kinds of fields that stored records have."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

MAX_WEIGHTS = 1 << 40  # of a tensor


class Record(BaseModel):
    """Nothing is converted, and no number is NaN or infinite: JSON has neither."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


def within_memory(shape: list[int]) -> list[int]:
    if math.prod(shape) > MAX_WEIGHTS:
        raise ValueError(f"must hold at most {MAX_WEIGHTS:,} numbers")
    return shape


def _inside(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise ValueError("must be a path inside of the folder")
    return name


Count = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=0, le=10**15)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Bits = Annotated[float, Field(ge=0, le=128)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Positive = Annotated[float, Field(gt=0, le=1e30)]
Shape = Annotated[list[Annotated[int, Field(ge=1, lt=2**31)]], Field(min_length=1, max_length=5), AfterValidator(within_memory)]
Inside = Annotated[str, Field(min_length=1), AfterValidator(_inside)]
Interval = Annotated[tuple[Number, Number], Strict(False)]
Looks = list[Annotated[tuple[Annotated[int, Field(ge=0)], Number | None], Strict(False)]]  # (step, loss)


class Sampled(Record):
    steps: Count | None = None
    guidance: Number | None = None
    height: Count | None = None
    width: Count | None = None
    n_frames: Count | None = None
    max_tokens: Count | None = None
    batch_size: Count | None = None
    prompts: str | list[str] | None = None
    negative_prompts: str | list[str] | None = None
    input_images: str | None = None
    input_masks: str | None = None
    dtype: str | None = None


Halves = Annotated[tuple[Number | None, Number | None], Strict(False)]


class Estimate(Record):
    value: Number | None
    se: Number | None = None
    halves: Halves | None = None
