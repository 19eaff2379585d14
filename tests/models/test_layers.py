"""Which layers are found, and what they are called for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sedaq.aq.modules.quantize import quantize_
from sedaq.errors import InputError
from sedaq.models.layers import Layer, block_of, computed_weights, find_layers, role_of


@pytest.mark.parametrize(
    "path, role, block",
    [
        # DiTTransformer2DModel
        ("pos_embed.proj", "input", ""),
        ("transformer_blocks.0.norm1.emb.timestep_embedder.linear_1", "time embedding", "transformer_blocks.0"),
        ("transformer_blocks.3.norm1.linear", "modulation", "transformer_blocks.3"),
        ("transformer_blocks.3.attn1.to_q", "attention query", "transformer_blocks.3"),
        ("transformer_blocks.3.attn1.to_k", "attention key", "transformer_blocks.3"),
        ("transformer_blocks.3.attn1.to_v", "attention value", "transformer_blocks.3"),
        ("transformer_blocks.3.attn1.to_out.0", "attention output", "transformer_blocks.3"),
        ("transformer_blocks.11.ff.net.0.proj", "feed-forward in", "transformer_blocks.11"),
        ("transformer_blocks.11.ff.net.2", "feed-forward out", "transformer_blocks.11"),
        ("proj_out_1", "output", ""),
        ("proj_out_2", "output", ""),
        # UNet2DModel and UNet2DConditionModel
        ("conv_in", "input", ""),
        ("time_embedding.linear_1", "time embedding", ""),
        ("add_embedding.linear_1", "condition embedding", ""),
        ("class_embedding.linear_2", "condition embedding", ""),
        ("down_blocks.0.resnets.1.conv1", "residual conv 1", "down_blocks.0"),
        ("down_blocks.0.resnets.1.conv2", "residual conv 2", "down_blocks.0"),
        ("down_blocks.1.resnets.0.time_emb_proj", "time projection", "down_blocks.1"),
        ("down_blocks.1.resnets.0.conv_shortcut", "skip", "down_blocks.1"),
        ("down_blocks.1.downsamplers.0.conv", "downsampling", "down_blocks.1"),
        ("up_blocks.2.upsamplers.0.conv", "upsampling", "up_blocks.2"),
        ("mid_block.attentions.0.to_q", "attention query", "mid_block"),
        ("mid_block.attentions.0.to_out.0", "attention output", "mid_block"),
        ("down_blocks.1.attentions.0.proj_in", "block input", "down_blocks.1"),
        ("mid_block.attentions.0.proj_out", "block output", "mid_block"),
        ("up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k", "attention key", "up_blocks.1"),
        ("single_transformer_blocks.4.proj_out", "block output", "single_transformer_blocks.4"),
        ("caption_projection.linear_1", "condition embedding", ""),
        ("proj_out", "output", ""),
        ("conv_out", "output", ""),
        # SanaTransformer2DModel and FluxTransformer2DModel
        ("transformer_blocks.2.ff.conv_inverted", "feed-forward in", "transformer_blocks.2"),
        ("transformer_blocks.2.ff.conv_depth", "depthwise convolution", "transformer_blocks.2"),
        ("transformer_blocks.2.ff.conv_point", "feed-forward out", "transformer_blocks.2"),
        ("single_transformer_blocks.4.proj_mlp", "feed-forward in", "single_transformer_blocks.4"),
        # Architectures that the table does not know: the path without its indices, so that alike layers share a role.
        ("stages.4.mixer.dense", "stages.mixer.dense", "stages.4"),
        ("stages.5.mixer.dense", "stages.mixer.dense", "stages.5"),
        ("0.dense", "dense", ""),
        ("7", "7", ""),
        ("encoder", "encoder", ""),
    ],
)
def test_role_and_block_follow_from_the_path(path: str, role: str, block: str) -> None:
    assert (role_of(path), block_of(path)) == (role, block)


class Mixed(nn.Module):
    """One of everything that has a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1, 2)  # too few to be worth it
        self.dense = nn.Linear(8, 6)
        self.norm = nn.LayerNorm(6)
        self.line = nn.Conv1d(4, 6, 3)
        self.image = nn.Conv2d(8, 4, (3, 1), groups=2)
        self.video = nn.Conv3d(2, 2, 2)
        self.up = nn.ConvTranspose2d(2, 2, 2)


def test_linear_and_convolutions_are_found_with_shape_kind_and_groups() -> None:
    found = find_layers(Mixed())
    assert [(x.name, x.kind, x.shape, x.groups) for x in found] == [
        ("dense", "linear", (6, 8), 1),
        ("line", "conv1d", (6, 4, 3), 1),
        ("image", "conv2d", (4, 4, 3, 1), 2),
        ("video", "conv3d", (2, 2, 2, 2, 2), 1),
    ]
    assert [(x.n_weights, x.n_in) for x in found] == [(48, 8), (72, 12), (48, 12), (32, 16)]


def test_a_shared_module_is_one_layer() -> None:
    shared = nn.Linear(3, 3)
    assert [layer.name for layer in find_layers(nn.Sequential(shared, nn.ReLU(), shared))] == ["0"]


@pytest.mark.parametrize("globs, left", [(["dense"], "line image video"), (["*i*"], "dense"), (["video", "l*"], "dense image")])
def test_excluded_globs_leave_layers_out(globs: list[str], left: str) -> None:
    assert [layer.name for layer in find_layers(Mixed(), globs)] == left.split()


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"`exclude` norm: no Linear or Conv layer .*sedaq inspect"):
        find_layers(Mixed(), ["dense", "norm"])


def test_nothing_left_is_refused() -> None:
    with pytest.raises(InputError, match="nothing can be quantized"):
        find_layers(Mixed(), ["*"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name_unless_excluded(value: float) -> None:
    model = Mixed()
    with torch.no_grad():
        model.image.weight[1, 2, 0, 0] = value
    with pytest.raises(InputError, match="layer image: its weight holds NaN or infinity; .*`exclude` image"):
        find_layers(model)
    assert "image" not in [layer.name for layer in find_layers(model, ["image"])]


def test_a_layer_is_a_value() -> None:
    assert Layer("a", "r", "", "linear", (2, 3)) == Layer("a", "r", "", "linear", (2, 3))
    assert find_layers(Mixed()) == find_layers(Mixed())


def test_weights_that_are_made_anew_in_every_call_are_named() -> None:
    wrap = nn.utils.parametrizations
    model = nn.Sequential(
        wrap.weight_norm(nn.Linear(4, 4)), wrap.spectral_norm(nn.Linear(4, 4)), nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)
    )
    assert computed_weights(model) == ["0", "1", "2"] and [layer.name for layer in find_layers(model)] == ["3"]
    quantize_(model, {"3": "int8"})
    assert computed_weights(model) == ["0", "1", "2"], "codes are no such thing"
