"""What a tuning made, as a file: the same tuning asked for again is read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...runtime.owner import artifact
from ...runtime.tasks import as_damage
from ...storage import load_tensors, save_tensors
from ..activations.quantizer import Activation, ActivationQuantizers
from ..encoding import Encoding
from ..formats import Format
from .tuned import Tuned


def save_tuned(path: Path, tuned: Tuned) -> None:
    """Write a safetensors file. Raises InputError where `path` cannot be written."""
    tensors: dict[str, torch.Tensor] = {f"other/{name}": tensor.contiguous() for name, tensor in tuned.others.items()}
    encodings: dict[str, Any] = {}
    for layer, encoding in tuned.encodings.items():
        tensors |= {f"encoding/{layer}/{name}": tensor for name, tensor in encoding.tensors.items()}
        encodings[layer] = {
            "format": str(encoding.format),
            "shape": list(encoding.shape),
            "error": _number(encoding.error),
            "provenance": encoding.provenance,
        }
    inputs = None
    if tuned.inputs is not None:
        choices = {name: [choice.bits, choice.scheme] for name, choice in tuned.inputs.choices.items()}
        inputs = {"choices": choices, "edges": list(tuned.inputs.edges)}
        tensors |= {f"input/{layer}/{name}": t for layer, of in (tuned.inputs.tensors or {}).items() for name, t in of.items()}
    losses = [[step, _number(loss)] for step, loss in tuned.losses]
    details = {
        "encodings": encodings,
        "inputs": inputs,
        "losses": losses,
        "ending": tuned.ending,
        "lost": _number(tuned.lost),
        "seconds": _number(tuned.seconds),
    }
    save_tensors(path, "tuned", {name: tensor.cpu() for name, tensor in tensors.items()}, {**details, **artifact(path)})


def load_tuned(path: Path) -> Tuned:
    """Raises DamagedError for a file that is damaged."""
    tensors, details = load_tensors(path, "tuned", owner=artifact(path))
    with as_damage(path):
        return _tuned_of(tensors, details)


def _tuned_of(tensors: Mapping[str, torch.Tensor], details: Mapping[str, Any]) -> Tuned:
    parts: dict[str, dict[str, dict[str, torch.Tensor]]] = {"encoding": {}, "input": {}}
    others = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "other":
            others[rest] = tensor
        else:
            layer, _, own = rest.rpartition("/")
            parts[kind].setdefault(layer, {})[own] = tensor
    encodings = {
        layer: Encoding(
            Format.parse(known["format"]), tuple(known["shape"]), parts["encoding"][layer], _or_nan(known["error"]), known["provenance"]
        )
        for layer, known in details["encodings"].items()
    }
    inputs = None
    if details["inputs"] is not None:
        choices = {name: Activation(bits, scheme) for name, (bits, scheme) in details["inputs"]["choices"].items()}
        inputs = ActivationQuantizers(choices, tuple(details["inputs"]["edges"]), parts["input"])
    losses = [(step, _or_nan(loss)) for step, loss in details["losses"]]
    return Tuned(encodings, others, losses, inputs, details["ending"], _or_nan(details["lost"]), _or_nan(details.get("seconds")))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
