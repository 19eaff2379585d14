"""Which layers get the same input, such as a query, a key and a value: one second moment serves them all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .hooks import Before, hooking, input_of
from .layers import Layer
from .sampling import SamplingConfig
from .subject import Subject

N_HELD = 16
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


class Inputs:
    """What layers got lately in one call of the denoiser, so that the same tensor is known again."""

    def __init__(self) -> None:
        # Tensors are held, so that their addresses are not given away meanwhile; only so many, for they are what memory goes to.
        self._seen: OrderedDict[tuple[Any, ...], tuple[str, torch.Tensor]] = OrderedDict()

    def forget(self, *_: Any) -> None:
        """The denoiser is called anew."""
        self._seen.clear()

    def first_with(self, name: str, module: nn.Module, x: torch.Tensor) -> str:
        """The layer that got this tensor first, and makes the same columns of it: `name` itself if there is none before."""
        geometry = tuple(getattr(module, field, None) for field in _GEOMETRY)
        key = (x.data_ptr(), x._version if not x.is_inference() else 0, tuple(x.shape), x.stride(), x.dtype, *geometry)
        first = self._seen.setdefault(key, (name, x))[0]
        self._seen.move_to_end(key)
        if len(self._seen) > N_HELD:
            self._seen.popitem(last=False)
        return first


def find_shared(subject: Subject, layers: Sequence[Layer], sampling: SamplingConfig) -> dict[str, str]:
    """For every layer whose input another one got before, in every call of a sampling of one image in two steps: that other layer's name.

    Layers whose weight other modules have, too, share with none: they see more.
    """
    firsts: dict[str, list[str]] = {}
    inputs, tied = Inputs(), set(subject.tied_layers.values())

    def hook(name: str) -> Before:
        return lambda module, args, kwargs: firsts.setdefault(name, []).append(inputs.first_with(name, module, input_of(args, kwargs)))

    names = [layer.name for layer in layers if layer.name not in tied]
    with hooking(subject.denoiser, before={**forgetting(subject, inputs), **{name: hook(name) for name in names}}):
        subject.sample(replace(sampling, steps=2), seed=0, n_images=1)
    alone = {name for name, found in firsts.items() if set(found) == {name}}
    return {
        name: found[0]
        for name, found in firsts.items()
        if name not in alone and found[0] in alone and found == firsts[found[0]]  # in as many calls
    }


def forgetting(subject: Subject, inputs: Inputs) -> Mapping[str, Before]:
    """Hooks by which `inputs` begins anew with every call of a component."""
    return {prefix.rstrip("."): inputs.forget for prefix in subject.parts}


def groups_of(layers: Iterable[Layer], shared: Mapping[str, str]) -> list[list[Layer]]:
    """Layers in order, those behind the first whose input they get."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(shared.get(layer.name, layer.name), []).append(layer)
    return list(found.values())
