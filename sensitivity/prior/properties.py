"""What is known of a layer before any probe, one function a property; the learnt prior sees nothing else.

A property is a number or one of a few names for every row of a table; a row is one entry of one layer's menu. Numbers that are ratios are
logarithms of them, so that models of all sizes lie beside each other. What is not known is NaN, which trees take.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from ...models.layers import EMBEDDING, Layer
from ..predictor.additive import Array

_LEAST = 1e-12  # below which nothing has a logarithm

# What a layer is for, over all models: by the end of its role in models/layers.py; what none matches is "other", or "convolution" if it is one.
ROLES: dict[str, str] = {
    "query": r"attention query$",
    "key": r"attention key$",
    "value": r"attention value$",
    "query, key and value": r"attention query, key, value$",
    "attention output": r"attention output$",
    "feed-forward in": r"feed-forward in$|(proj_mlp|linear_3|w3|fc_in)$",
    "feed-forward out": r"feed-forward out$|(out_projection|fc_out)$",
    "convolution": r"residual conv [12]$",
    "resampling": r"(down|up)sampling$",
    "skip": r"skip$",
    "time embedding": r"time embedding$|(^|\.)time\w*(emb|proj)\w*",
    "condition embedding": r"condition embedding$|(context|caption|class|label|text|word|token)\w*[._](emb\w*|proj\w*)",
    "modulation": r"modulation$|time projection$|(adaln|ada_ln|modulation|norm)\w*\.(linear|lin|\w*proj)$",
    "block input": r"block input$",
    "block output": r"block output$",
    "input": r"(^|: )(input|x_embedder|patch_embed\w*|patchify\w*)$",
    "output": r"(^|: )output$",
    "other": r"$",
}
# Where a layer stands: by its path.
BLOCKS: dict[str, str] = {
    "down": r"(^|\.)(down|enc|in_?block)\w*\.",
    "middle": r"(^|\.)mid\w*\.",
    "up": r"(^|\.)(up|dec|out_?block)\w*\.",
    "single stream": r"(^|\.)single\w*\.\d+\.",
    "numbered": r"(^|\.)\w+\.\d+\.",
    "outside of blocks": r"",
}


def general_role(layer: Layer) -> str:
    """One of ROLES."""
    found = next(name for name, pattern in ROLES.items() if re.search(pattern, layer.role))
    return "convolution" if found == "other" and layer.kind.startswith("conv") else found


def block_kind(layer: Layer) -> str:
    """One of BLOCKS."""
    return next(name for name, pattern in BLOCKS.items() if re.search(pattern, layer.name))


@dataclass(frozen=True)
class Facts:
    """What properties are made of: layers, what was observed of them, and for each row its layer and its entry's rate, error and score.

    observed: by layer name and what is observed (observed.OBSERVED). scores: None where the denoiser has no gradients.
    """

    layers: Sequence[Layer]
    observed: Mapping[str, Mapping[str, float]]
    index: np.ndarray  # (rows,) of the layer
    rates: Array  # (rows,)
    errors: Array
    scores: Array | None

    def of_layers(self, value: Callable[[Layer], float | str]) -> np.ndarray:
        """(rows,)"""
        return np.array([value(layer) for layer in self.layers])[self.index]

    def seen(self, name: str) -> Array:
        """(rows,) what was observed, NaN where it is not known."""
        return np.array([self.observed.get(layer.name, {}).get(name, np.nan) for layer in self.layers], dtype=float)[self.index]

    @cached_property
    def weights(self) -> Array:
        """(layers,) numbers of weights of those that multiply."""
        return np.array([layer.n_weights for layer in self.layers], dtype=float)

    @cached_property
    def multiply_adds(self) -> Array:
        """(layers,) of an image's sampling; embeddings look up, and have none."""
        tokens = np.array([self.observed.get(layer.name, {}).get("tokens", np.nan) for layer in self.layers], dtype=float)
        return tokens * self.weights * np.array([layer.kind != EMBEDDING for layer in self.layers])

    @cached_property
    def slopes(self) -> Array:
        """(layers,) by how much log(error) falls with a bit, by least squares over a layer's rows of at most 4 bits; NaN for fewer than two."""
        found = np.full(len(self.layers), np.nan)
        for layer in range(len(self.layers)):
            own = (self.index == layer) & (self.rates <= 4) & (self.errors > 0)
            if len(set(self.rates[own])) > 1:
                found[layer] = -np.polyfit(self.rates[own], np.log(self.errors[own]), 1)[0]
        return found


def _log(values: Array) -> Array:
    return np.log(np.maximum(values, _LEAST))


def output_error(facts: Facts) -> Array:
    """Log of the relative error of the layer's output in this entry."""
    return _log(facts.errors)


def error_slope(facts: Facts) -> Array:
    """By how much the log of the relative output error falls with one more bit."""
    return facts.slopes[facts.index]


def gradient_score(facts: Facts) -> Array:
    """Log of how much of the error reaches the denoiser's output, by one backward pass."""
    return np.full(len(facts.index), np.nan) if facts.scores is None else _log(facts.scores)


def gain(facts: Facts) -> Array:
    """Log of the gradient score over the error, the mean over the layer's entries: how much of an error of this layer reaches the output."""
    ratios = gradient_score(facts) - output_error(facts)
    return np.array(
        [ratios[facts.index == layer].mean() if (facts.index == layer).any() else np.nan for layer in range(len(facts.layers))]
    )[facts.index]


def weight_share(facts: Facts) -> Array:
    """Log of the layer's share of the eligible weights."""
    return _log(facts.weights / facts.weights.sum())[facts.index]


def work_share(facts: Facts) -> Array:
    """Log of the layer's share of the multiply-adds of the eligible layers."""
    known = facts.multiply_adds
    return np.where(known > 0, _log(known / max(np.nansum(known), _LEAST)), np.nan)[facts.index]


def depth(facts: Facts) -> Array:
    """Place in the order of first calls: 0 for the first layer, 1 for the last."""
    return facts.seen("order") / max(1, len(facts.layers) - 1)


def layers_before(facts: Facts) -> Array:
    """Log of one more than the number of layers that are called earlier."""
    return np.log1p(facts.seen("order"))


def layers_behind(facts: Facts) -> Array:
    """Log of one more than the number of layers that are called later."""
    return np.log1p(np.maximum(len(facts.layers) - 1 - facts.seen("order"), 0))


def role(facts: Facts) -> np.ndarray:
    """What the layer is for."""
    return facts.of_layers(general_role)


def block(facts: Facts) -> np.ndarray:
    """Where the layer stands."""
    return facts.of_layers(block_kind)


def shape_ratio(facts: Facts) -> Array:
    """Log of outputs over inputs."""
    return np.log(facts.of_layers(lambda layer: layer.shape[0] / (layer.n_in * layer.groups))).astype(float)


def group_rows(facts: Facts) -> Array:
    """Log of the rows of a convolution's group, of other layers all their rows."""
    return np.log(facts.of_layers(lambda layer: layer.shape[0] / layer.groups)).astype(float)


def weight_kurtosis(facts: Facts) -> Array:
    """Log of the fourth moment of the weights in units of their rows' root mean squares; log 3 for normal ones."""
    return np.log(facts.seen("weight_kurtosis"))


def weight_outliers(facts: Facts) -> Array:
    """Share of the weights beyond three root mean squares of their row."""
    return facts.seen("weight_outliers")


def input_kurtosis(facts: Facts) -> Array:
    """Log of the fourth moment of the inputs in units of the call's root mean square; log 3 for normal ones."""
    return np.log(facts.seen("input_kurtosis"))


def input_outliers(facts: Facts) -> Array:
    """Share of the inputs beyond three root mean squares of the call."""
    return facts.seen("input_outliers")


def effective_rank(facts: Facts) -> Array:
    """Log of (tr H)² / tr(H²) over the number of inputs; 0 where all directions of the inputs have the same power."""
    return np.log(facts.seen("effective_rank"))


def output_norm(facts: Facts) -> Array:
    """Log of the root mean square of the layer's output over that of its block's; NaN outside of blocks."""
    return _log(facts.seen("output_norm"))


def input_trend(facts: Facts) -> Array:
    """Log of the inputs' root mean square in the last quarter of the steps over that in the first."""
    return facts.seen("input_trend")


def input_variation(facts: Facts) -> Array:
    """Standard deviation over the steps of the log of the inputs' root mean square."""
    return facts.seen("input_variation")


def sees_image(facts: Facts) -> Array:
    """1 where the image reaches the input with no other eligible layer between."""
    return facts.seen("sees_image")


def sees_time(facts: Facts) -> Array:
    """1 where the time reaches the input with no other eligible layer between."""
    return facts.seen("sees_time")


def sees_condition(facts: Facts) -> Array:
    """1 where the condition reaches the input with no other eligible layer between."""
    return facts.seen("sees_condition")


@dataclass(frozen=True)
class Property:
    """A row of PROPERTIES.

    of: from facts, (rows,) numbers, or names out of `names`. label, unit: in figures and sentences. monotone: 1 where more of it never makes a layer
    less harmful.
    """

    of: Callable[[Facts], np.ndarray]
    label: str
    unit: str
    monotone: int = 0
    names: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """What it is, in a sentence."""
        return (self.of.__doc__ or "").strip()


def _table(*rows: Property) -> dict[str, Property]:
    return {row.of.__name__: row for row in rows}


PROPERTIES: dict[str, Property] = _table(
    Property(output_error, "output error", "log", 1),
    Property(error_slope, "fall of the error per bit", "log per bit"),
    Property(gradient_score, "gradient score", "log", 1),
    Property(gain, "gradient score per error", "log"),
    Property(weight_share, "share of the weights", "log"),
    Property(work_share, "share of the multiply-adds", "log"),
    Property(depth, "depth", "0 to 1"),
    Property(layers_before, "layers before it", "log"),
    Property(layers_behind, "layers behind it", "log"),
    Property(role, "role", "", names=tuple(ROLES)),
    Property(block, "block", "", names=tuple(BLOCKS)),
    Property(shape_ratio, "outputs per input", "log"),
    Property(group_rows, "rows a group", "log"),
    Property(weight_kurtosis, "kurtosis of the weights", "log"),
    Property(weight_outliers, "outliers among the weights", "share"),
    Property(input_kurtosis, "kurtosis of the inputs", "log"),
    Property(input_outliers, "outliers among the inputs", "share"),
    Property(effective_rank, "effective rank of the inputs", "log"),
    Property(output_norm, "output against the block's", "log"),
    Property(input_trend, "growth of the inputs over the steps", "log"),
    Property(input_variation, "variation of the inputs over the steps", "log"),
    Property(sees_image, "sees the image", "0 or 1"),
    Property(sees_time, "sees the time", "0 or 1"),
    Property(sees_condition, "sees the condition", "0 or 1"),
)


def properties_of(facts: Facts) -> pd.DataFrame:
    """A column for each of PROPERTIES, a row for each of the facts'. Infinite numbers are not known either."""
    found = {name: one.of(facts) for name, one in PROPERTIES.items()}
    return pd.DataFrame(
        {name: values if PROPERTIES[name].names else np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}
    )


def columns() -> dict[str, tuple[str, int]]:
    """Of what trees see, by name: the property that each belongs to, and its direction. A property of names has a column for each."""
    return {
        f"{name}: {one}" if one else name: (name, property.monotone)
        for name, property in PROPERTIES.items()
        for one in property.names or ("",)
    }


def as_numbers(table: pd.DataFrame) -> Array:
    """(rows, columns) of a table that has the columns of PROPERTIES. A name that is not among a property's leaves all of its columns 0."""
    parts = [
        (table[name].to_numpy(object)[:, None] == np.array(one.names, object)).astype(float)
        if one.names
        else table[name].to_numpy(float)[:, None]
        for name, one in PROPERTIES.items()
    ]
    return np.hstack(parts)
