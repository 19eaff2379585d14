"""What all adapters have in common, and the adapter of a user's own sample function."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from ...errors import InputError
from ..sampling import SamplingConfig


class Adapter(ABC):
    """How one kind of model is sampled.

    Attributes:
        scheduler: the diffusers scheduler, None where there is none to show.
        image_shape: (C, H, W) of the images, None where it is not known before some are sampled.
        batch_size: images sampled at once where nothing is said of it.
        dtype: what the model computes in, None where only the sampler knows.
        default_steps: of a sampling that says nothing of its steps, None where only the sampler knows.
    """

    scheduler: Any = None
    image_shape: tuple[int, ...] | None = None
    batch_size: int = 4
    default_steps: int | None = None
    dtype: torch.dtype | None = None

    @abstractmethod
    def sample(self, sampling: SamplingConfig, *, seed: int, start: int, n_images: int) -> torch.Tensor:
        """Images start … start + n_images − 1 of `seed`, (n_images, C, H, W) in [0, 1].

        Image i's noise depends on (seed, i) alone. Raises InputError for a setting that the model does not take.
        """

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """What the denoiser works on, float32, of images (n, C, H, W) in [0, 1]. Raises InputError where it is not known how."""
        return 2 * images - 1


def refuse_others(sampling: SamplingConfig, known: Collection[str], who: str) -> None:
    """Raise InputError for a setting that is given and not among those `known` to the model."""
    for name in sampling.given:
        if name not in known:
            raise InputError(f"`{name}`: {who} takes no {name}; leave `{name}` out")


def check_call(function: Callable[..., Any], arguments: Mapping[str, Any], who: str, remedy: str) -> None:
    """Raise InputError where `function` cannot be called with `arguments` by their names."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise InputError(f"{who} cannot be called with {', '.join(arguments)}: {error}; {remedy}") from error


class FunctionAdapter(Adapter):
    """A user's function sample(*, seed, start, n_images, steps=None, …) → images (n_images, C, H, W) in [0, 1].

    It is given the settings of SamplingConfig that are not None by their names, and need not know others.
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self.function = function
        self.scheduler = getattr(function, "scheduler", None)
        self.image_shape = getattr(function, "image_shape", None)

    def sample(self, sampling: SamplingConfig, *, seed: int, start: int, n_images: int) -> torch.Tensor:
        parameters = inspect.signature(self.function).parameters
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            refuse_others(sampling, parameters, "the sample function")
        arguments = {"seed": seed, "start": start, "n_images": n_images, "steps": sampling.steps, **sampling.given}
        check_call(self.function, arguments, "the sample function", "it must take these by name, and have a default for all else")
        return self.function(**arguments)
