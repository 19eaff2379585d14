"""A corpus whose law is known: what a prior has to find in it is written here."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sedaq.sensitivity.prior.corpus import COLUMNS
from sedaq.sensitivity.prior.properties import BLOCKS, PROPERTIES, ROLES
from sedaq.storage import fingerprint

RATES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
EXPONENT, OF_SCORE = 1.1, 0.7  # of the error within a layer, and of the layer's gain
IMAGE, OUTPUT = np.log(3.0), np.log(2.0)  # factors of layers that see the image, and of those of role output: a quarter of all layers each
LEVEL, SPREAD = 0.5, 0.3  # of models, and of layers, that no property knows: standard deviations of the log


def log_effect(table: pd.DataFrame) -> np.ndarray:
    """The law, over full precision's own distance."""
    return np.asarray(
        EXPONENT * (table["output_error"] + 2)
        + OF_SCORE * table["gain"]
        + IMAGE * table["sees_image"]
        + OUTPUT * (table["role"] == "output")
        - 2.5
    )


def synthetic_corpus(
    n_models: int, n_layers: int = 12, *, seed: int = 0, noise: float = 0.01, spread: float = SPREAD, level: float = LEVEL, first: int = 0
) -> pd.DataFrame:
    """Models of other sizes, distances and levels; noise is that of a label, over full precision's distance."""
    return pd.concat([_model(number, n_layers, seed, noise, spread, level) for number in range(first, first + n_models)], ignore_index=True)


def _model(number: int, n_layers: int, seed: int, noise: float, spread: float, level: float) -> pd.DataFrame:
    rng = np.random.default_rng([seed, number])
    layer = np.repeat(np.arange(n_layers), len(RATES))
    rates = np.tile(RATES, n_layers)

    def of_layers(values: np.ndarray) -> np.ndarray:
        return np.asarray(values)[layer]

    log_errors = of_layers(rng.normal(0, 0.3, n_layers)) - 1.3 * (rates - 1.5) - 0.7
    numbers = {name: of_layers(rng.normal(size=n_layers)) for name, one in PROPERTIES.items() if not one.names}
    own = {
        "output_error": log_errors,
        "gain": of_layers(rng.normal(0, 1.2, n_layers)),
        "depth": of_layers(np.arange(n_layers) / (n_layers - 1)),
        "sees_image": of_layers((rng.permutation(n_layers) % 4 == 0).astype(float)),
        "role": of_layers(np.where(rng.permutation(n_layers) % 4 == 0, "output", rng.choice(list(ROLES)[:8], n_layers))),
        "block": of_layers(rng.choice(list(BLOCKS), n_layers)),
    }
    table = pd.DataFrame({**numbers, **own})
    table["gradient_score"] = table["gain"] + table["output_error"]
    full_precision = float(np.exp(rng.normal(1, 1)))
    logs = log_effect(table) + of_layers(rng.normal(0, spread, n_layers)) + rng.normal(0, level)
    halves = full_precision * (np.exp(logs)[:, None] + noise * 2**0.5 * rng.normal(size=(len(table), 2)))
    known = {
        "model": f"model {number}",
        "fingerprint": fingerprint([seed, number]),
        "layer": [f"blocks.{index}" for index in layer],
        "rate": rates,
        "format": [f"1x{index + 3}g2" for index in range(len(RATES))] * n_layers,
        "error": np.exp(log_errors),
        "score": np.exp(table["gradient_score"]),
        "effect": halves.mean(1),
        "se": noise * full_precision,
        "half_1": halves[:, 0],
        "half_2": halves[:, 1],
        "full_precision": full_precision,
        "metric": "fid",
        "n_images": 2000.0,
        "n_plans": 50.0,
    }
    return table.assign(**known)[list(COLUMNS)]
