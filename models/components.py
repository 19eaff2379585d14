"""Which components of a pipeline are quantized, and several of them as one module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_TIMES = ("timestep", "timesteps", "t", "timestep_ratio", "r")


class Components(nn.ModuleDict):
    """Several components of a pipeline: a layer's path begins with the name of its component."""


def is_denoiser(module: Any) -> bool:
    """Whether a pipeline asks it at every step for the next image: it is told the time, and adds nothing to what another one says."""
    if not isinstance(module, nn.Module):
        return False
    arguments = inspect.signature(module.forward).parameters
    return any(name in arguments for name in _TIMES) and "controlnet_cond" not in arguments


def denoisers_of(components: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the denoisers: one of most pipelines, two of those in stages (Stable Cascade) or with experts (Wan 2.2)."""
    return tuple(name for name, component in components.items() if is_denoiser(component))
