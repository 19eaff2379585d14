"""What tuning gives back of each layer's cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sedaq.reports.figures import FIGURES
from sedaq.reports.inputs import read_run
from sedaq.reports.tuning_figures import costs_of_tuning, tuned_costs_caption

from .conftest import damage, layer_names, write_run


def test_costs_before_and_after_tuning_are_paired_by_layer(tmp_path: Path) -> None:
    table = costs_of_tuning(read_run(write_run(tmp_path / "run")))
    names = layer_names(4)
    assert set(table["layer"]) == set(names) and len(table) == len(names)
    assert set(table["rate"]) == {1.5}
    left = (table["cost_tuned"] / table["cost"]).to_numpy()
    assert left == pytest.approx(np.where(table["layer"] == names[0], 0.5, 0.1))
    assert table["cost_tuned"].is_monotonic_decreasing


def test_the_caption_says_what_is_left_and_of_which_layer_most(tmp_path: Path) -> None:
    said = tuned_costs_caption(read_run(write_run(tmp_path / "run")))
    assert said.startswith("50 steps of tuning leave a median layer 10% of its cost; of the costlier half pos_embed.proj keeps most, 50%. ")
    assert "by 24 tuned probes" in said


def test_fits_of_different_metrics_are_not_compared(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    spec = next(spec for spec in FIGURES if spec.name == "tuned_costs")
    assert spec.available(read_run(folder))
    damage(folder / "predictor_tuned" / "fit.json", "metric", "kid", "fit")
    assert not spec.available(read_run(folder))
