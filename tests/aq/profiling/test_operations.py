"""Counted operations against loops that do them one by one, and tokens against those that a model really has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sedaq.aq.activations.quantizer import Activation
from sedaq.aq.export.inspection import inspect
from sedaq.aq.formats import AS_IS, Format
from sedaq.aq.plans.menu import heuristic_menus
from sedaq.aq.profiling.operations import Operations, modules_of, of_module, operations, tokens_of
from sedaq.models.loading import load


def by_hand(format: Format, shape: tuple[int, ...], tokens: int, groups: int) -> tuple[int, int]:
    """Multiply-adds of tables and additions of lookups, a group and a row at a time."""
    n_out, n_in = shape[0], torch.Size(shape[1:]).numel()
    stored = {"": format.n_entries, "m": format.n_entries // 2, "h": 2 * round(format.n_entries**0.5)}[format.structure]
    multiply_adds = additions = 0
    for _token in range(tokens):
        for _start in range(0, n_in, format.group_size):
            for _codebook in range(format.n_codebooks):
                multiply_adds += groups * stored * format.group_size
                additions += n_out
    return multiply_adds, additions


@pytest.mark.parametrize("text", ["2x8g8", "1x5g3", "1x6g4m", "3x4g7h", "2x8g9q"])
@pytest.mark.parametrize(("shape", "groups"), [((12, 32), 1), ((8, 3, 3, 3), 1), ((8, 3, 5), 4)])
def test_of_formats_with_codes(text, shape, groups):
    format = Format.parse(text)
    found = operations(format, shape, 7, groups=groups)
    assert (found.table_multiply_adds, found.lookup_additions) == by_hand(format, shape, 7, groups)
    assert found.dense_multiply_adds == 7 * torch.Size(shape).numel() and found.multiply_adds == 0
    assert found.bytes_read == format.size_bytes(shape)


def test_of_layers_without_codes():
    assert operations(AS_IS, (4, 6), 5, bytes_a_weight=2) == Operations(120, 120, 0, 0, 48, 24)
    assert operations(Format.parse("int8"), (4, 6), 5) == Operations(120, 120, 0, 0, 24 + 2 * 4, 24)
    total = operations(AS_IS, (4, 6), 5) + operations(Format.parse("int8"), (4, 6), 5)
    assert total == Operations(240, 240, 0, 0, 96 + 32, 48)
    assert total.row()["dense_bytes"] == {"32/32": 192, "16/16": 96, "8/8": 48}


def test_tokens_are_those_of_one_image(subject):
    counted = tokens_of(subject)
    assert set(counted) == {layer.name for layer in subject.layers}
    assert counted["pos_embed.proj"] == counted["transformer_blocks.0.attn1.to_q"] == 4, "four patches of 4×4 on 8×8"
    assert counted["transformer_blocks.0.norm1.linear"] == 1


def test_a_quantized_model_has_the_operations_of_its_plan(subject, mixed_plan, quantized):
    tokens = tokens_of(subject)
    planned = inspect(subject, heuristic_menus(subject), mixed_plan, tokens)
    loaded = load(quantized, quantized=True)
    modules = modules_of(loaded.denoiser)
    assert tokens_of(loaded) == tokens
    by_name = {layer["name"]: layer for layer in planned["layers"]}
    for name, module in modules.items():
        if hasattr(module, "format"):  # others were stored in 16 bits and are loaded in 32
            assert of_module(module, tokens[name]).row() == by_name[name]["operations"]
    for key in ("dense_multiply_adds", "lookup_additions", "bytes_read"):
        assert planned["plan"]["operations"][key] == sum(layer["operations"][key] for layer in planned["layers"]) > 0


def test_a_plan_says_how_inputs_are_rounded(subject, mixed_plan):
    rounded = mixed_plan.with_activations(subject, {"proj_out_2": Activation(6, "step")})
    layers = inspect(subject, heuristic_menus(subject), rounded)["layers"]
    assert {layer["name"]: layer["inputs"] for layer in layers if layer["inputs"]} == {"proj_out_2": "6 bits step"}


def test_a_layer_that_is_called_twice_counts_twice():
    from sedaq.aq.profiling.operations import tokens_counted

    model = nn.Linear(3, 5)
    with tokens_counted(model, [""]) as counted:
        model(torch.zeros(2, 7, 3))
        model(torch.zeros(3))
    model(torch.zeros(3))
    assert counted == {"": 15}
