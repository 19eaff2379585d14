"""What a subject consists of and what each layer could weigh."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...models.folders import weights_of
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
        formats: [{format, bits_per_weight, size_bytes}]}], by_component: {of several that are quantized, each: {n_layers, n_weights, size_bytes,
        bits_per_weight}}, kept: {kind of tensor that stays as it is: bytes}, components: {the pipeline's others:
        bytes of their files}}; with a plan each layer has its `planned` format and how its `inputs` are rounded, and
        `plan` its totals; with tokens, both have `operations` (Operations.row) of one image in one step.
    """
    if plan is not None:
        plan.validate(subject)
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
        **_counts(subject),
        "least_bits": weight_bits(subject, {name: entries[0].format for name, entries in menu.items()}),
        "greatest_bits": weight_bits(subject, {name: entries[-1].format for name, entries in menu.items()}),
        "layers": layers,
        "by_component": {prefix.rstrip("."): _counts(part) for prefix, part in subject.parts.items() if prefix},
        "kept": kept_bytes(subject),
        "components": other_components(subject),
    }
    if plan is not None:
        result["plan"] = {"size_bytes": plan.size_bytes, "bits_per_weight": plan.bits_per_weight, "budget": plan.budget, "hash": plan.hash}
        if tokens is not None:
            result["plan"]["operations"] = total.row()
    return result


def _counts(subject: Subject) -> dict[str, Any]:
    """What it has in full precision."""
    return {
        "n_layers": len(subject.layers),
        "n_weights": sum(layer.n_weights for layer in subject.layers),
        "size_bytes": model_file_bytes(subject),
        "bits_per_weight": weight_bits(subject, {layer.name: AS_IS for layer in subject.layers}),
    }


def kept_bytes(subject: Subject) -> dict[str, int]:
    """Bytes of what no plan changes, by the class of the module that holds it; biases of layers apart. The most first."""
    layers = {layer.name for layer in subject.layers}
    found: Counter[str] = Counter()
    for name, (dtype, shape) in subject.tensor_specs.items():
        path, _, tensor = name.rpartition(".")
        if path in layers and tensor == "weight":
            continue
        kind = "biases of layers" if path in layers else type(subject.denoiser.get_submodule(path)).__name__
        found[kind] += dtype.itemsize * math.prod(shape)
    return dict(found.most_common())


def other_components(subject: Subject) -> dict[str, int]:
    """Bytes of the weights of a pipeline's other components."""
    if not subject.components or subject.folder is None:
        return {}
    names = [path.name for path in sorted(subject.folder.iterdir()) if path.is_dir() and path.name not in subject.components]
    sizes = {name: sum(path.stat().st_size for path in weights_of(subject.folder / name)) for name in names}
    return {name: size for name, size in sizes.items() if size}
