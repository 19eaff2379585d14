"""Adam that can forget entries."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

BETAS, EPSILON = (0.9, 0.95), 1e-8


class Adam:
    """Adam (Kingma & Ba 2015), its bias correction kept entry by entry so that single entries can forget their past.

        m ← β₁ m + (1 − β₁) g    a ← β₁ a + (1 − β₁)    v ← β₂ v + (1 − β₂) g²    b ← β₂ b + (1 − β₂)
        p ← p − η unit (m / a) / (√(v / b) + ε)

    a and b are what the weights of the past add up to, 1 − βᵗ after t steps: m / a and v / b are Adam's corrected moments. `forget` multiplies
    all four by 1 − share, which leaves both means as they are and gives what comes next the weight that the past has lost.

    Args:
        units: of the parameters' lengths of step, by name; 1 where there is none.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], units: Mapping[str, float] | None = None) -> None:
        self.parameters, self.units = dict(parameters), dict(units or {})
        self._state = {name: [torch.zeros_like(p) for _ in range(4)] for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter that has a gradient; all at once, for a GPU would spend its time being told of hundreds of small tensors."""
        moving = {name: parameter.grad for name, parameter in self.parameters.items() if parameter.grad is not None}
        if not moving:
            return
        gradients = list(moving.values())
        m, a, v, b = zip(*(self._state[name] for name in moving), strict=True)
        torch._foreach_lerp_(m, gradients, 1 - BETAS[0])
        torch._foreach_lerp_(a, [torch.ones_like(t) for t in a], 1 - BETAS[0])
        torch._foreach_lerp_(v, torch._foreach_mul(gradients, gradients), 1 - BETAS[1])
        torch._foreach_lerp_(b, [torch.ones_like(t) for t in b], 1 - BETAS[1])
        sizes = torch._foreach_div(v, b)
        torch._foreach_sqrt_(sizes)
        torch._foreach_add_(sizes, EPSILON)
        steps = torch._foreach_div(m, a)
        torch._foreach_mul_(steps, [learning_rate * self.units.get(name, 1.0) for name in moving])
        torch._foreach_div_(steps, sizes)
        torch._foreach_sub_([self.parameters[name] for name in moving], steps)

    @torch.no_grad()
    def forget(self, name: str, share: torch.Tensor | float, *, only_direction: bool = False) -> None:
        """Make the past of a parameter's entries count for 1 − share of what it did. share: in [0, 1], of a shape that expands to the parameter's.

        only_direction: leave v and b as they are.
        """
        for tensor in self._state[name][: 2 if only_direction else 4]:
            tensor.mul_(1 - share)

    def direction(self, name: str) -> torch.Tensor:
        """m, whose sign says where the entry has been going."""
        return self._state[name][0]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint needs."""
        return {f"{name}/{key}": t for name, state in self._state.items() for key, t in zip("mavb", state, strict=True)}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what tensors() gave."""
        for name, state in self._state.items():
            for key, tensor in zip("mavb", state, strict=True):
                tensor.copy_(tensors[f"{name}/{key}"])


def distinct(named: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Every parameter once, under the first name that it has."""
    first: dict[int, str] = {}
    return {name: parameter for name, parameter in named.items() if first.setdefault(id(parameter), name) == name}
