"""Properties of layers whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from sedaq.models.layers import Layer, block_of, role_of
from sedaq.sensitivity.prior.properties import (
    BLOCKS,
    PROPERTIES,
    ROLES,
    Facts,
    as_numbers,
    block_kind,
    columns,
    general_role,
    properties_of,
)


def layer(path: str, kind: str = "linear", shape: tuple[int, ...] = (4, 4), groups: int = 1) -> Layer:
    return Layer(path, role_of(path), block_of(path), kind, shape, groups)


LAYERS = [
    layer("conv_in", "conv2d", (8, 1, 3, 3)),
    layer("down_blocks.0.resnets.0.conv1", "conv2d", (8, 4, 3, 3), groups=2),
    layer("proj", "linear", (16, 8)),
    layer("table", "embedding", (10, 8)),
]
OBSERVED = {
    "conv_in": {"order": 0.0, "tokens": 100.0, "input_kurtosis": 3.0, "sees_image": 1.0, "output_norm": 0.5, "effective_rank": 0.25},
    "down_blocks.0.resnets.0.conv1": {"order": 1.0, "tokens": 25.0, "weight_outliers": 0.01},
    "proj": {"order": 2.0, "tokens": 10.0},
    "table": {},
}


def facts(scores: bool = True) -> Facts:
    """Two entries a layer, whose errors fall by a factor of e² a bit."""
    index = np.repeat(np.arange(4), 2)
    rates = np.tile([2.0, 3.0], 4)
    errors = np.exp(-2 * rates) * np.repeat([1.0, 2.0, 3.0, 4.0], 2)
    return Facts(LAYERS, OBSERVED, index, rates, errors, errors * np.repeat([1.0, 5.0, 1.0, 1.0], 2) if scores else None)


def test_every_property_is_documented_and_gives_a_value_a_row() -> None:
    table = properties_of(facts())
    assert list(table) == list(PROPERTIES) and len(table) == 8
    for name, one in PROPERTIES.items():
        assert one.what.endswith(".") and one.label and one.monotone in (0, 1), name
    numbers = as_numbers(table)
    assert numbers.shape == (8, len(columns())) and len({name for name, _ in columns().values()}) == len(PROPERTIES)


def test_numbers_are_what_they_say() -> None:
    table = properties_of(facts())
    first, second, third, fourth = (table.iloc[2 * index] for index in range(4))
    assert first["output_error"] == pytest.approx(-4) and table["output_error"][1] == pytest.approx(-6)
    np.testing.assert_allclose(table["error_slope"], 2)
    assert second["gradient_score"] == pytest.approx(np.log(10) - 4) and second["gain"] == pytest.approx(np.log(5))
    weights = np.array([72, 288, 128, 80])
    assert second["weight_share"] == pytest.approx(np.log(288 / weights.sum()))
    work = np.array([72 * 100, 288 * 25, 128 * 10])
    assert third["work_share"] == pytest.approx(np.log(work[2] / work.sum())) and np.isnan(fourth["work_share"])
    assert [row["depth"] for row in (first, second, third)] == pytest.approx([0, 1 / 3, 2 / 3])
    assert second["layers_before"] == pytest.approx(np.log(2)) and second["layers_behind"] == pytest.approx(np.log(3))
    assert first["shape_ratio"] == pytest.approx(np.log(8 / 9)) and second["shape_ratio"] == pytest.approx(np.log(8 / 72))
    assert second["group_rows"] == pytest.approx(np.log(4)) and third["group_rows"] == pytest.approx(np.log(16))
    assert first["input_kurtosis"] == pytest.approx(np.log(3)) and first["output_norm"] == pytest.approx(np.log(0.5))
    assert first["effective_rank"] == pytest.approx(np.log(0.25)) and second["weight_outliers"] == 0.01
    assert first["sees_image"] == 1 and np.isnan(fourth["sees_image"])


def test_without_gradients_the_score_is_not_known() -> None:
    table = properties_of(facts(scores=False))
    assert table["gradient_score"].isna().all() and table["gain"].isna().all() and table["output_error"].notna().all()


def test_the_gain_is_the_same_in_all_entries_so_that_no_column_works_against_the_error() -> None:
    """It is not monotone: if it changed within a layer, more error could be said to do less harm."""
    noisy = facts()
    bent = Facts(noisy.layers, noisy.observed, noisy.index, noisy.rates, noisy.errors, noisy.errors ** np.tile([1.0, 1.3], 4))
    constant = {name for name, one in PROPERTIES.items() if not one.monotone}
    table = properties_of(bent)
    for name in constant:
        assert table.groupby(bent.index)[name].nunique(dropna=False).max() == 1, name


@pytest.mark.parametrize(
    ("path", "kind", "role", "block"),
    [
        ("transformer_blocks.3.attn1.to_q", "linear", "query", "numbered"),
        ("transformer_blocks.3.attn.add_k_proj", "linear", "key", "numbered"),
        ("mid_block.attentions.0.to_v", "linear", "value", "middle"),
        ("up_blocks.1.attentions.0.to_out.0", "linear", "attention output", "up"),
        ("single_transformer_blocks.2.proj_mlp", "linear", "feed-forward in", "single stream"),
        ("single_transformer_blocks.2.proj_out", "linear", "block output", "single stream"),
        ("blocks.1.attn.qkv", "linear", "query, key and value", "numbered"),
        ("transformer_blocks.3.ff.net.2", "linear", "feed-forward out", "numbered"),
        ("down_blocks.0.resnets.1.conv2", "conv2d", "convolution", "down"),
        ("down_blocks.0.downsamplers.0.conv", "conv2d", "resampling", "down"),
        ("up_blocks.0.resnets.0.conv_shortcut", "conv2d", "skip", "up"),
        ("up_blocks.0.resnets.0.time_emb_proj", "linear", "modulation", "up"),
        ("transformer_blocks.0.norm1.linear", "linear", "modulation", "numbered"),
        ("time_embedding.linear_1", "linear", "time embedding", "outside of blocks"),
        ("context_embedder", "linear", "condition embedding", "outside of blocks"),
        ("pos_embed.proj", "conv2d", "input", "outside of blocks"),
        ("x_embedder", "linear", "input", "outside of blocks"),
        ("proj_out", "linear", "output", "outside of blocks"),
        ("something.new", "linear", "other", "outside of blocks"),
        ("body.4", "conv2d", "convolution", "outside of blocks"),
    ],
)
def test_roles_and_blocks_are_the_same_over_architectures(path: str, kind: str, role: str, block: str) -> None:
    one = layer(path, kind, (4, 4, 3, 3) if kind == "conv2d" else (4, 4))
    assert (general_role(one), block_kind(one)) == (role, block)
    assert role in ROLES and block in BLOCKS
    several = Layer(f"unet.{path}", f"unet: {one.role}", "", kind, one.shape)
    assert general_role(several) == role, "of one of several components"
