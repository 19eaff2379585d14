"""Which components of a pipeline are quantized, and several of them as one module."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

TIMES = ("timestep", "timesteps", "t", "timestep_ratio", "r")


class Components(nn.ModuleDict):
    """Several components of a pipeline: a layer's path begins with the name of its component."""


def is_told_the_time(module: Any) -> bool:
    """Whether a pipeline asks it, a module or a class of modules, at every step."""
    if not issubclass(module if isinstance(module, type) else type(module), nn.Module):
        return False
    return any(name in inspect.signature(module.forward).parameters for name in TIMES)


def is_denoiser(module: Any) -> bool:
    """Whether a pipeline asks it at every step for the next image: it is told the time, and adds nothing to what another one says."""
    return is_told_the_time(module) and "controlnet_cond" not in inspect.signature(module.forward).parameters


def denoisers_of(components: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the denoisers: one of most pipelines, two of those in stages (Stable Cascade) or with experts (Wan 2.2)."""
    return tuple(name for name, component in components.items() if is_denoiser(component))


def whole_config(module: nn.Module) -> dict[str, Any]:
    """A module's configuration, as JSON, without names that begin with an underscore, which are diffusers' own notes: its version, and the folder that
    the model happens to lie in."""
    config: Any = getattr(module, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)  # of transformers, of diffusers
    return _as_json({key: value for key, value in values.items() if not key.startswith("_")})


def essentials(module: nn.Module) -> dict[str, Any]:
    """The same without what is at its default, and without what its class does not know: neither makes another model, and newer versions have more."""
    config: Any = getattr(module, "config", {})
    if hasattr(config, "to_diff_dict"):  # of transformers
        known = type(config)().to_dict()
        return _as_json(_without_notes({key: value for key, value in config.to_diff_dict().items() if key in known}))
    defaults = {name: parameter.default for name, parameter in inspect.signature(type(module).__init__).parameters.items()}
    found = whole_config(module)
    if not hasattr(module, "register_to_config"):  # a user's own module, whose config is what he says
        return found
    plain = _as_json({name: default for name, default in defaults.items() if default is not inspect.Parameter.empty})
    return {key: value for key, value in found.items() if key in defaults and not (key in plain and plain[key] == value)}


def _without_notes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what transformers notes of a loading: its version, and the dtype that was asked for."""
    notes = ("transformers_version", "dtype", "torch_dtype")
    kept = {key: value for key, value in values.items() if key not in notes and not key.startswith("_")}
    return {key: _without_notes(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return known
