"""What a layer costs for one image in one call of the denoiser: operations and bytes, counted and not timed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...models.hooks import After, hooking
from ...models.layers import KINDS
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ..formats import AS_IS, Format
from ..modules.layers import quantized_modules

DENSE_BYTES = {"32/32": 4, "16/16": 2, "8/8": 1}  # of a weight, by the bits of weights and activations


@dataclass(frozen=True)
class Operations:
    """Of one or several products. Coded layers are counted as the product by lookup does them: every table entry that is no sum of others is
    g multiply-adds, every code one addition. bytes_read are those of the weights as stored, read once."""

    dense_multiply_adds: int = 0  # that the product takes without codes
    multiply_adds: int = 0  # that are left: of layers without codes
    table_multiply_adds: int = 0
    lookup_additions: int = 0
    bytes_read: int = 0
    n_weights: int = 0

    def __add__(self, other: Operations) -> Operations:
        return Operations(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    def row(self) -> dict[str, Any]:
        """For tables and JSON: what is counted, and what the dense product reads with weights and activations of so many bits."""
        counted = {name: value for name, value in vars(self).items() if name != "n_weights"}
        return {**counted, "dense_bytes": {name: size * self.n_weights for name, size in DENSE_BYTES.items()}}


def operations(format: Format, shape: tuple[int, ...], tokens: int, *, groups: int = 1, bytes_a_weight: int = 4) -> Operations:
    """Of one layer at a number of tokens.

    Args:
        shape: (out, in / groups, *taps) of its weight.
        bytes_a_weight: of a layer that stays as it is.
    """
    n_weights = math.prod(shape)
    dense = tokens * n_weights
    if format.kind != "additive":
        stored = n_weights * bytes_a_weight if format.kind == "asis" else format.size_bytes(shape)
        return Operations(dense, dense, 0, 0, stored, n_weights)
    tables = tokens * groups * format.n_groups(shape) * format.n_codebooks
    lookups = tokens * shape[0] * format.n_groups(shape) * format.n_codebooks
    return Operations(dense, 0, tables * format.n_stored_entries * format.group_size, lookups, format.size_bytes(shape), n_weights)


def modules_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Linear and Conv layers, those that hold codes among them, by path."""
    kinds = tuple(KINDS)
    found = {name: module for name, module in denoiser.named_modules() if isinstance(module, kinds)}
    return found | quantized_modules(denoiser)


@contextmanager
def tokens_counted(denoiser: nn.Module, names: Collection[str]) -> Iterator[dict[str, int]]:
    """Positions in the outputs of the modules named while the block runs, filled as they are called."""
    counted = dict.fromkeys(names, 0)

    def hook(name: str) -> After:
        def count(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            counted[name] += output.numel() // _shape(module)[0]

        return count

    with hooking(denoiser, after={name: hook(name) for name in names}):
        yield counted


def tokens_of(subject: Subject, sampling: SamplingConfig | None = None) -> dict[str, int]:
    """Of every layer for one image in one sampling step, found out by sampling two."""
    with tokens_counted(subject.denoiser, modules_of(subject.denoiser)) as counted:
        subject.sample(replace(sampling or SamplingConfig(), steps=2), seed=0, n_images=1)
    return {name: count // 2 for name, count in counted.items()}


def _shape(module: Any) -> tuple[int, ...]:
    """Of the weight, (out, in / groups, *taps)."""
    return tuple(module.shape if hasattr(module, "format") else module.weight.shape)


def of_module(module: Any, tokens: int) -> Operations:
    """Of a Linear or Conv layer, with or without codes."""
    format: Format = getattr(module, "format", AS_IS)
    size = module.weight.element_size() if format.kind == "asis" else 0
    return operations(format, _shape(module), tokens, groups=getattr(module, "groups", 1), bytes_a_weight=size)


def described(module: Any) -> dict[str, Any]:
    """{planned: its format, or the dtype of a weight without codes; shape}"""
    planned = str(module.format) if hasattr(module, "format") else str(module.weight.dtype).removeprefix("torch.")
    return {"planned": planned, "shape": list(_shape(module))}
