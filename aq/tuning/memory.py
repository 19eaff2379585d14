"""How much memory tuning takes, by parts that can be counted beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ...models.subject import Subject
from ..formats import Format
from .settings import TuneConfig

ADAM = 4  # moments and their weights, each as large as the parameter


def tuning_bytes(subject: Subject, formats: Mapping[str, Format], settings: TuneConfig) -> dict[str, int]:
    """Bytes of each part, activations of a batch apart.

    With n weights in layers with codes, of which there are c numbers, and p continuous parameters:

        weights     8 n   dense, with and without row scales, made anew at every step
        gradients   4 n   of them
        buffers     4 n   straight-through, and the mean square of gradients, in 16 bits
        codes      16 c   as they are, as they were best, and as indices in a step
        parameters  4 p · (2 + 1 + 4 [+ 1])  themselves, the best, gradients, Adam [the running mean]
        teacher     as it is in memory; where tuning compares whole answers alone and runs on a GPU, it waits in the host's memory

    The replay buffer holds 16 bits a number, in the host's memory, and is not in it.
    """
    quantized = {name: format for name, format in formats.items() if format.kind == "additive"}
    shapes = {layer.name: layer.shape for layer in subject.layers}
    n = sum(math.prod(shapes[name]) for name in quantized)
    codes = sum(shapes[name][0] * format.n_groups(shapes[name]) * format.n_codebooks for name, format in quantized.items())
    in_layers = {f"{name}.weight" for name in shapes}
    books = {format.book or name: format for name, format in quantized.items()}
    parameters = (
        sum(format.n_codebooks * format.n_stored_entries * format.group_size for format in books.values())
        + sum(shapes[name][0] for name in quantized)
        + sum(p.numel() for name, p in subject.denoiser.named_parameters() if name not in in_layers)
    )
    copies = 3 + ADAM + (settings.ema_decay > 0)
    return {
        "weights": 8 * n,
        "gradients": 4 * n,
        "buffers": 0 if settings.code_step == "none" else 4 * n,
        "codes": 16 * codes,
        "parameters": 4 * copies * parameters,
        "teacher": sum(_bytes(p) for p in subject.denoiser.parameters()),
    }


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
