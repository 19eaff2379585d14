"""quantize_: a module's layers replaced in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sedaq
from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format
from sedaq.aq.modules.layers import AQConv2d, AQLinear
from sedaq.errors import InputError


@pytest.fixture
def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 24), nn.Linear(24, 24))


def test_named_layers_are_replaced_and_others_stay(module) -> None:
    x, before = torch.randn(2, 4, 6, 6), [parameter.clone() for parameter in module[4].parameters()]
    exact = module(x)
    assert sedaq.quantize_(module, {"0": "2x4g4c", "3": Format.parse("2x8g4")}) is module
    assert isinstance(module[0], AQConv2d) and isinstance(module[3], AQLinear) and type(module[4]) is nn.Linear
    assert all(torch.equal(one, two) for one, two in zip(before, module[4].parameters(), strict=True))
    error = (module(x) - exact).square().sum() / exact.square().sum()
    assert 0 < error < 0.2


def test_encodings_that_are_given_are_used(module) -> None:
    format = Format.parse("1x4g4")
    made = encode(module[3].weight, format, seed=3)
    sedaq.quantize_(module, {"3": format}, {"3": made})
    assert all(torch.equal(module[3].stored[name], tensor) for name, tensor in made.tensors.items())


def test_shared_codebooks_are_held_once(module) -> None:
    sedaq.quantize_(module, {"3": "1x4g4@pair", "4": "1x4g4@pair"})
    assert torch.equal(module[3].stored["codebooks"], module[4].stored["codebooks"])
    assert "3.codebooks" in module.state_dict() and "4.codebooks" not in module.state_dict()


def test_an_as_is_layer_is_left_alone(module) -> None:
    layer = module[3]
    assert sedaq.quantize_(module, {"3": "asis"})[3] is layer


@pytest.mark.parametrize(
    ("plan", "encodings", "said"),
    [
        ({"7": "1x4g4"}, None, "names layer '7', which the module does not have"),
        ({"1": "1x4g4"}, None, "names layer '1'"),
        ({"3": "1x4g4t"}, None, "layer 3: "),
        ({"3": "1x4g4"}, {}, "layer 3 needs one in format 1x4g4"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(module, plan, encodings, said) -> None:
    before = list(module)
    with pytest.raises(InputError, match=said):
        sedaq.quantize_(module, plan, encodings)
    assert list(module) == before
