"""Straight-through buffers: the steps that the gradients of a dense weight ask for, summed until codes can take them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .adam import BETAS, EPSILON

KEPT = torch.bfloat16


@dataclass
class StraightThroughBuffer:
    """The summed step and the mean square of gradients, (out, G, g) in 16 bits; `weight`: what the weights of that mean's past add up to."""

    change: torch.Tensor
    square: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def zeros_like(cls, like: torch.Tensor) -> StraightThroughBuffer:
        """An empty buffer for gradients of the shape of `like`."""
        return cls(torch.zeros_like(like, dtype=KEPT), torch.zeros_like(like, dtype=KEPT), torch.zeros((), device=like.device))

    def add(self, gradient: torch.Tensor, stride: float, decay: float) -> None:
        """v ← β₂ v + (1 − β₂) g², u ← decay · u − stride · g / √v: Adam's step without momentum, of which the sum over steps is one.

        Divided entry by entry: gradients of dense weights have heavy tails, and a few entries would make all the steps.
        """
        square = self.square.float().lerp_(gradient.square(), 1 - BETAS[1])
        self.weight = self.weight.lerp(torch.ones_like(self.weight), 1 - BETAS[1])
        step = gradient / ((square / self.weight).sqrt() + EPSILON)
        self.square = square.to(KEPT)
        self.change = (decay * self.change.float()).sub_(stride * step).to(KEPT)


def stride(reach: float, progress: float, n_steps: int) -> float:
    """Length of a step relative to the weights, falling to zero by a cosine.

    Where gradients are noise alone, buffers wander `reach` over n steps: the sum of squares of (1 + cos) / 2 is 3 n / 8.
    """
    return reach / math.sqrt(3 * n_steps / 8) * 0.5 * (1 + math.cos(math.pi * progress))
