"""Hooks are the same for calls by position and by name, and go when their block ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sedaq.models.hooks import add_hooks, hooking, input_of


class Named(nn.Module):
    """Calls its layer by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(input=x) + 1


def count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_inputs_and_outputs_can_be_seen_and_changed() -> None:
    model, seen = Named(), []

    def double(module, args, kwargs):
        return args, {"input": 2 * input_of(args, kwargs)}

    def note(module, args, kwargs, output):
        seen.append((module is model, input_of(args, kwargs).tolist() if module is model.layer else None, output.tolist()))

    with hooking(model, before={"layer": double}, after={"layer": note, "": note}):
        assert model(torch.tensor([3.0])).tolist() == [7.0]
    assert seen == [(False, [6.0], [6.0]), (True, None, [7.0])]
    assert model(torch.tensor([3.0])).tolist() == [4.0] and count_hooks(model) == 0


def test_an_output_can_be_replaced() -> None:
    model = Named()
    with hooking(model, after={"layer": lambda module, args, kwargs, output: -output}):
        assert model(torch.tensor([3.0])).tolist() == [-2.0]


def test_hooks_go_when_the_block_fails_and_none_is_added_beside_an_unknown_path() -> None:
    model = Named()
    with pytest.raises(RuntimeError, match="stop"), hooking(model, before={"": lambda *_: None}, after={"layer": lambda *_: None}):
        assert count_hooks(model) == 2
        raise RuntimeError("stop")
    with pytest.raises(AttributeError, match="nowhere"), hooking(model, before={"": lambda *_: None, "nowhere": lambda *_: None}):
        raise AssertionError("the block ran")
    assert count_hooks(model) == 0


def test_prepended_hooks_come_first() -> None:
    model = Named()
    add_hooks(model, before={"": lambda module, args, kwargs: ((args[0] + 1,), kwargs)})
    with hooking(model, before={"": lambda module, args, kwargs: ((args[0] * 10,), kwargs)}, prepend=True):
        assert model(torch.tensor([3.0])).tolist() == [32.0]
    with hooking(model, before={"": lambda module, args, kwargs: ((args[0] * 10,), kwargs)}):
        assert model(torch.tensor([3.0])).tolist() == [41.0]
