"""A plan as settings of another library, for devices that have its kernels and not ours. Codes are ours alone: what goes over is bits per layer, rounded up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import InputError
from ...models.layers import Layer
from ...models.subject import Subject
from ..plans.menu import entry
from ..plans.plan import Plan

# What each library's scalars can have.
_BITS = {"torchao": (1, 2, 3, 4, 5, 6, 7, 8), "quanto": (2, 4, 8)}


def bits_of_layers(subject: Subject, plan: Plan, library: str) -> dict[str, int]:
    """Whole bits of each layer that the library can quantize: those of the plan's format, shared codebooks apart, rounded up.

    Layers that the plan leaves as they are have no entry, nor have those that the library does not take (torchao: convolutions).
    """
    found = {}
    for layer in subject.layers:
        format = plan.formats[layer.name]
        if format.kind == "asis" or not _takes(library, layer):
            continue
        exact = 8 * entry(subject, layer, format).size_bytes / layer.n_weights
        found[layer.name] = min((bits for bits in _BITS[library] if bits >= exact - SCALES), default=_BITS[library][-1])
    return found


SCALES = 0.1  # bits a weight that scales and codebooks may add before a layer counts for the next whole number


def _takes(library: str, layer: Layer) -> bool:
    return layer.kind == "linear" or (library == "quanto" and layer.kind == "conv2d")


def _torchao(bits: dict[str, int]) -> dict[str, Any]:
    """torchao.core.config.config_from_dict reads it; quantize_(model, config, filter_fn=None) applies it."""

    def of_layer(n: int) -> dict[str, Any]:
        data = {
            "weight_dtype": {"_type": "torch.dtype", "_data": f"int{n}"},
            "granularity": {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}},
        }
        return {"_type": "IntxWeightOnlyConfig", "_version": 2, "_data": data}

    return {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": {name: of_layer(n) for name, n in bits.items()}}}


def _quanto(bits: dict[str, int]) -> dict[str, Any]:
    """A quantization map as optimum.quanto writes it."""
    return {name: {"weights": f"qint{n}", "activations": "none"} for name, n in bits.items()}


SETTINGS_MARKS = {"torchao": "FqnToConfig", "quanto": '"weights": "qint'}  # in every file of settings
LIBRARIES: dict[str, Callable[[dict[str, int]], dict[str, Any]]] = {"torchao": _torchao, "quanto": _quanto}


def settings_for(subject: Subject, plan: Plan, library: str) -> dict[str, Any]:
    """The plan as torchao's FqnToConfig or as quanto's quantization map, ready to be written as JSON.

    Raises:
        InputError: another library, or several components, whose modules have no common path there.
    """
    if library not in LIBRARIES:
        raise InputError(f"`settings` {library!r}: choose one of {', '.join(LIBRARIES)}")
    if len(subject.parts) > 1:
        raise InputError("`settings`: other libraries quantize one component at a time; make a plan for each")
    plan.validate(subject)
    return LIBRARIES[library](bits_of_layers(subject, plan, library))
