"""What a subject consists of and what each layer could weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...models.subject import Subject
from ..formats import AS_IS
from ..plans.menu import Entry
from ..plans.plan import Plan, model_file_bytes, weight_bits
from ..profiling.operations import Operations, operations


def inspect(
    subject: Subject, menu: Mapping[str, Sequence[Entry]], plan: Plan | None = None, tokens: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Sizes of the subject as it is, the menu of every layer, and what `plan` would make of it. Shared codebooks count in full.

    Args:
        tokens: of every layer, as operations.tokens_of finds them; with a plan, to count what it saves.

    Returns:
        {n_layers, n_weights, size_bytes, bits_per_weight, least_bits, greatest_bits, layers: [{name, role, block, kind, shape, n_weights,
        formats: [{format, bits_per_weight, size_bytes}]}]}; with a plan each layer has its `planned` format and how its `inputs` are rounded, and
        `plan` its totals; with tokens, both have `operations` (Operations.row) of one image in one step.
    """
    if plan is not None:
        plan.validate(subject)
    as_is = {layer.name: AS_IS for layer in subject.layers}
    layers: list[dict[str, Any]] = []
    total = Operations()
    for layer in subject.layers:
        formats = [
            {
                "format": str(e.format),
                "bits_per_weight": 8 * (e.size_bytes + e.book_bytes) / layer.n_weights,
                "size_bytes": e.size_bytes + e.book_bytes,
            }
            for e in menu[layer.name]
        ]
        row = {
            "name": layer.name,
            "role": layer.role,
            "block": layer.block,
            "kind": layer.kind,
            "shape": list(layer.shape),
            "n_weights": layer.n_weights,
            "formats": formats,
        }
        if plan is not None:
            row["planned"] = str(plan.formats[layer.name])
            row["inputs"] = str(plan.activations.get(layer.name, ""))
        if plan is not None and tokens is not None and layer.name in tokens:  # others look rows up
            size = subject.tensor_specs[f"{layer.name}.weight"][0].itemsize
            counted = operations(plan.formats[layer.name], layer.shape, tokens[layer.name], groups=layer.groups, bytes_a_weight=size)
            row |= {"tokens": tokens[layer.name], "operations": counted.row()}
            total += counted
        layers.append(row)
    result: dict[str, Any] = {
        "name": subject.name,
        "n_layers": len(layers),
        "n_weights": sum(layer.n_weights for layer in subject.layers),
        "size_bytes": model_file_bytes(subject),
        "bits_per_weight": weight_bits(subject, as_is),
        "least_bits": weight_bits(subject, {name: entries[0].format for name, entries in menu.items()}),
        "greatest_bits": weight_bits(subject, {name: entries[-1].format for name, entries in menu.items()}),
        "layers": layers,
    }
    if plan is not None:
        result["plan"] = {"size_bytes": plan.size_bytes, "bits_per_weight": plan.bits_per_weight, "budget": plan.budget, "hash": plan.hash}
        if tokens is not None:
            result["plan"]["operations"] = total.row()
    return result
