"""What a layer sees directly: the image, the time or the condition, with no other eligible layer between.

A call of the denoiser is asked again with one kind of argument taken from another call, while every eligible layer answers a fixed noise: a
layer whose input still differs gets that argument by operations without quantized weights alone. Nothing is differentiated, so that integer
labels, looked-up embeddings and times count like all else.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...errors import InputError
from ...models.calls import arguments_of, named_leaves
from ...models.components import TIMES
from ...models.hooks import After, Before, hooking, input_of
from ...models.layers import Layer
from ...models.subject import Subject

IMAGE, TIME, CONDITION = KINDS = ("image", "time", "condition")
TIME_NAMES = (*TIMES, "sigma", "sigmas")  # of arguments
SAME = 1e-6  # relative difference of two inputs, below which they are the same but for the order of sums


@dataclass(frozen=True)
class AskedCall:
    """The arguments of one call of a denoiser."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AskedCall:
        """A copy, which the sampler does not change."""
        return cls(*pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, (args, kwargs)))


def kind_of_argument(path: str, signature: inspect.Signature) -> str:
    """What a denoiser's argument is, by the path of a leaf: the first one is the image, times go by their names, all others are conditions."""
    name = path.partition("/")[0]
    if name == next(iter(signature.parameters)):
        return IMAGE
    return TIME if name in TIME_NAMES else CONDITION


def seen_directly(part: Subject, layers: Sequence[Layer], own: AskedCall, other: AskedCall, last: AskedCall) -> dict[str, dict[str, bool]]:
    """By layer name, whether each kind of argument reaches its input directly. Layers that are not called have no entry.

    Args:
        part: a denoiser.
        own, other: calls at the same step of two images. last: the call of the first image's last step, whose time is another.

    Raises:
        InputError: for a denoiser that cannot be asked again.
    """
    signature = inspect.signature(part.denoiser.forward)
    leaves, spec = named_leaves(arguments_of(signature, own.args, own.kwargs))
    of_other, of_last = (named_leaves(arguments_of(signature, call.args, call.kwargs))[0] for call in (other, last))
    others = {IMAGE: of_other, TIME: of_last, CONDITION: of_other}

    def asked(changed: str | None) -> dict[str, list[torch.Tensor]]:
        values = [
            _another(leaf, others[changed].get(path)) if changed is not None and kind_of_argument(path, signature) == changed else leaf
            for path, leaf in leaves.items()
        ]
        return _inputs(part, layers, pytree.tree_unflatten(values, spec))

    try:
        before = asked(None)
        after = {kind: asked(kind) for kind in KINDS}
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"the denoiser cannot be asked again: {str(error).partition(chr(10))[0]}") from error
    return {name: {kind: _differ(inputs, after[kind].get(name, [])) for kind in KINDS} for name, inputs in before.items()}


def _another(leaf: Any, other: Any) -> Any:
    """Another value for an argument: that of another call, else its opposite, else zero. What has no other one stays."""
    if not isinstance(leaf, torch.Tensor):
        return leaf if other is None or type(other) is not type(leaf) else other
    if isinstance(other, torch.Tensor) and other.shape == leaf.shape and other.dtype == leaf.dtype and not torch.equal(other, leaf):
        return other
    return -leaf if leaf.is_floating_point() else torch.zeros_like(leaf)


def _inputs(part: Subject, layers: Sequence[Layer], call: Mapping[str, Any]) -> dict[str, list[torch.Tensor]]:
    """A few numbers of every input that each layer gets, while all layers answer noise that depends on nothing but their name."""
    seen: dict[str, list[torch.Tensor]] = {}

    def look(name: str) -> Before:
        return lambda module, args, kwargs: seen.setdefault(name, []).append(_digest(input_of(args, kwargs)))

    def answer(name: str) -> After:
        def noise(_: nn.Module, __: Any, ___: Any, output: torch.Tensor) -> torch.Tensor:
            rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            return torch.randn(output.shape, generator=rng).to(output)

        return noise

    paths = {layer.name: layer.name for layer in layers}
    paths |= {alias: holder for alias, holder in part.tied_layers.items() if holder in paths}
    distinct = {id(part.denoiser.get_submodule(path)): path for path in reversed(paths)}.values()
    hooks = {path: paths[path] for path in distinct}
    before, after = {path: look(name) for path, name in hooks.items()}, {path: answer(name) for path, name in hooks.items()}
    with torch.no_grad(), hooking(part.denoiser, before=before, after=after):
        part.denoiser(**call)
    return seen


def _digest(x: torch.Tensor) -> torch.Tensor:
    """(3,) sum, sum weighted by position, and what both are small against."""
    flat = x.detach().double().flatten()
    weighted = flat @ torch.linspace(-1, 1, len(flat), dtype=flat.dtype, device=flat.device)
    return torch.stack([flat.sum(), weighted, flat.square().sum().sqrt() * math.sqrt(max(len(flat), 1))]).cpu()


def _differ(inputs: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    if len(inputs) != len(others):
        return True
    return any(bool(((a - b)[:2].abs() > SAME * torch.maximum(a[2], b[2])).any()) for a, b in zip(inputs, others, strict=True))
