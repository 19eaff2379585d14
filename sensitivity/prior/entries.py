"""A run's menu entries with all that is known of them before any probe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ...storage import cache_folder
from ..probing.layer_statistics import LayerStatistics
from ..run import Run
from .observed import observed
from .properties import Facts, properties_of

KNOWN = ("layer", "rate", "format", "error", "score")  # beside the properties


def known_entries(run: Run, statistics: LayerStatistics | None = None) -> tuple[pd.DataFrame, list[str]]:
    """KNOWN and PROPERTIES of every entry of every menu but weights that stay as they are, in the order of layers and menus; and notes on what
    is not known, a line each."""
    statistics = statistics or LayerStatistics(run)
    layers = run.subject.layers
    rows = [(index, entry) for index, layer in enumerate(layers) for entry in run.menus[layer.name]]
    traits = [statistics.of_entry(layers[index].name, entry) for index, entry in rows]
    kept = [number for number, one in enumerate(traits) if one.error > 0]
    found, why_not = observed(run)
    scores = np.array([traits[number].score for number in kept])
    facts = Facts(
        layers,
        found,
        np.array([rows[number][0] for number in kept], dtype=int),
        np.array([rows[number][1].rate for number in kept]),
        np.array([traits[number].error for number in kept]),
        None if statistics.why_no_gradients else scores,
    )
    known = pd.DataFrame(
        {
            "layer": [layers[index].name for index in facts.index],
            "rate": facts.rates,
            "format": [str(rows[number][1].format) for number in kept],
            "error": facts.errors,
            "score": scores,
        }
    )
    return pd.concat([known, properties_of(facts)], axis=1), why_not


def personal_corpus() -> Path:
    """Where a user's own corpus is kept."""
    return cache_folder() / "prior" / "corpus.parquet"
