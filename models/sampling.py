"""How images are sampled: one object of settings, and sampling in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..progress import track
from .images import files_fingerprint

Condition = int | str
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled. A field that is None is left to the model.

    Args:
        steps: steps of the scheduler.
        guidance: weight w of classifier-free guidance, unconditional + w · (conditional − unconditional).
        height, width: size of the images in pixels.
        n_frames: length of videos.
        max_tokens: of a prompt.
        prompts: a text file with one prompt a line, or the prompts. A subject is loaded with them; image i has prompt i modulo their number.
        negative_prompts: likewise, what images are guided away from; given when sampling.
        input_images: folder of images to start from, for image-to-image, inpainting and ControlNet; image i starts from file i modulo their number, by name.
        input_masks: folder of masks, likewise.
        dtype: what the model computes in: float32 (where nothing is said), bfloat16 or float16. A subject is loaded in it.
        batch_size: images sampled at once. It changes memory and speed, so no identity depends on it.

    Raises:
        InputError: names the field and what it takes.

    Example:
        >>> SamplingConfig(steps=10, guidance=2.0, batch_size=8).identity
        {'guidance': 2.0}
    """

    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    n_frames: int | None = None
    max_tokens: int | None = None
    prompts: str | tuple[str, ...] | None = None
    negative_prompts: str | tuple[str, ...] | None = None
    input_images: str | Path | None = None
    input_masks: str | Path | None = None
    dtype: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "height", "width", "n_frames", "max_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"`{name}`: got {value!r}; give a whole number of 1 or more")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise InputError(f"`guidance`: got {self.guidance!r}; give a finite number")
        if self.dtype is not None:
            dtype_of(self.dtype)
        for name in ("prompts", "negative_prompts"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, str(value) if isinstance(value, Path) else tuple(value))
        for name in ("input_images", "input_masks"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, str(Path(value).resolve()))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamplingConfig:
        """The config of a mapping that may hold other keys, too."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    @property
    def given(self) -> dict[str, Any]:
        """What a sampler is told beside the number of steps: fields that are not None, without those that subjects are loaded with."""
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {"negative_prompts": self.negative_prompt_lines}
        return {name: value for name, value in values.items() if value is not None and name not in ("steps", "prompts", "dtype")}

    @property
    def identity(self) -> dict[str, Any]:
        """What images depend on beside subject and number of steps; fingerprints are made of it. Fields that are None do not appear."""
        files = {
            name: files_fingerprint(name, Path(value))
            for name in ("input_images", "input_masks")
            if (value := getattr(self, name)) is not None
        }
        computed = {} if self.dtype in (None, "float32") else {"dtype": self.dtype}
        return {name: value for name, value in self.given.items() if name != "batch_size"} | computed | files

    @property
    def prompt_lines(self) -> list[str] | None:
        """The prompts, read from their file if they are in one. Raises InputError where it cannot be read or holds none."""
        return _read_lines("prompts", self.prompts)

    @property
    def negative_prompt_lines(self) -> list[str] | None:
        """Like `prompt_lines`."""
        return _read_lines("negative_prompts", self.negative_prompts)


def _read_lines(name: str, value: str | tuple[str, ...] | None) -> list[str] | None:
    if not isinstance(value, str):
        return None if value is None else list(value)
    try:
        lines = [line.strip() for line in Path(value).read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`{name}` {value}: cannot be read; give a text file with one prompt a line") from error
    if not lines:
        raise InputError(f"`{name}` {value}: holds no prompts; give a text file with one prompt a line")
    return lines


def dtype_of(name: str) -> torch.dtype:
    """What a model computes in, by its name. Raises InputError for one that none does."""
    if name not in DTYPES:
        raise InputError(f"`dtype`: got {name!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def conditions_of(conditions: Sequence[Condition] | None, start: int, n_images: int) -> list[Condition] | None:
    """Image i's condition is conditions[i mod len]."""
    return [conditions[i % len(conditions)] for i in range(start, start + n_images)] if conditions else None


def split_images(start: int, n_images: int, size: int) -> list[tuple[int, int]]:
    """(first, number) of every batch of at most `size` of the images start … start + n_images − 1."""
    return [(first, min(size, start + n_images - first)) for first in range(start, start + n_images, size)]


def sample_in_chunks(
    sample: Callable[..., torch.Tensor],
    description: str,
    sampling: SamplingConfig,
    *,
    seed: int,
    n_images: int,
    start: int = 0,
    chunk: int = 256,
) -> torch.Tensor:
    """Images (n_images, C, H, W) of one long sampling, with a progress record after every `chunk` of them.

    Args:
        sample: a subject's or an adapter's.
    """
    chunks = split_images(start, n_images, chunk)
    return torch.cat(
        [sample(sampling, seed=seed, start=first, n_images=count) for first, count in track(chunks, description, cost=lambda item: item[1])]
    )
