"""What a step of tuning compares: single layers, blocks, or the whole denoiser.

One forward pass of the student serves every stage. In the first two each unit takes its input from the student, cut from the graph, so that
its gradients stay inside it, and its output is compared with the teacher's at the same call (as AQLM tunes block by block, on what the
quantized blocks before it give).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...errors import InputError
from ...models.hooks import After, hooking
from ...models.subject import Subject

WHOLE = "whole"


def layer_units(subject: Subject) -> list[str]:
    """Every layer by itself."""
    return [layer.name for layer in subject.layers]


def block_units(subject: Subject) -> list[str]:
    """Blocks, and layers that lie in none."""
    return list(dict.fromkeys(layer.block or layer.name for layer in subject.layers))


def whole_unit(subject: Subject) -> list[str]:
    """The denoiser; its answers are in the replay buffer."""
    return [""]


STAGES: dict[str, Callable[[Subject], list[str]]] = {"layers": layer_units, "blocks": block_units, WHOLE: whole_unit}


def _detached(value: Any) -> Any:
    return pytree.tree_map(lambda part: part.detach() if isinstance(part, torch.Tensor) else part, value)


def _tensors(output: Any) -> list[torch.Tensor]:
    return [part for part in pytree.tree_leaves(output) if isinstance(part, torch.Tensor) and part.is_floating_point()]


@contextmanager
def _recorded(root: nn.Module, units: Sequence[str], *, cut: bool) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Outputs of the units while the block runs; with `cut` their inputs are detached."""
    outputs: dict[str, list[torch.Tensor]] = {}

    def keep(unit: str) -> After:
        return lambda module, args, kwargs, output: outputs.setdefault(unit, []).extend(_tensors(output))

    def detach(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _detached(args), _detached(kwargs)

    # Inputs are detached before they are rounded: the ranges of static schemes have gradients, too.
    before = dict.fromkeys(units, detach) if cut else {}
    with hooking(root, after={unit: keep(unit) for unit in units}), hooking(root, before=before, prepend=True):
        yield outputs


def unit_loss(student: nn.Module, teacher: nn.Module, units: Sequence[str], run: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
    """Mean over units of ‖student's output − teacher's‖² / ‖teacher's‖².

    Args:
        run: calls a denoiser with the batch.

    Raises:
        InputError: where no unit was called.
    """
    with torch.no_grad(), _recorded(teacher, units, cut=False) as wanted:
        run(teacher)
    with _recorded(student, units, cut=True) as given:
        run(student)
    parts = [
        (a - b).square().sum() / b.square().sum().clamp(min=1e-30)
        for unit in units
        for a, b in zip(given.get(unit, ()), wanted.get(unit, ()), strict=True)
    ]
    if not parts:
        raise InputError("tuning: no unit of the stage was called by the denoiser; choose the stage whole")
    return torch.stack(parts).mean()
