"""Figures of a prior: by a law that is known, and the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sedaq.reports.prior_figures import N_NAMES, N_PANELS, direction, property_dependence, property_summary, write_figures
from sedaq.reports.style import MAX_FACTORS, new_figure, spot_boxes, styled
from sedaq.reports.style import as_factors as factors_on
from sedaq.sensitivity.prior.contributions import dependence, summary
from sedaq.sensitivity.prior.fit import fit_members
from sedaq.sensitivity.prior.model import LearntPrior, TreeSettings
from sedaq.sensitivity.prior.properties import PROPERTIES

from ..sensitivity.prior.synthetic import synthetic_corpus

TABLE = synthetic_corpus(6, 16, spread=0.1, level=0.2)


@pytest.fixture(scope="module")
def prior() -> LearntPrior:
    settings = TreeSettings(n_trees=30, learning_rate=0.2, min_child_weight=2.0)
    return LearntPrior(fit_members(TABLE, settings, seed=0, n_members=3), settings, 0.3, 0.2, 1.0, ["a"], "0")


def test_the_summary_ranks_properties_and_shows_their_direction(prior: LearntPrior) -> None:
    told = summary(prior, TABLE)
    figure = property_summary(told)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == [PROPERTIES[name].label for name in told["property"]][::-1]
    bars = [bar for bar in axes.patches if bar.get_width() > 0 and bar.get_height() == pytest.approx(0.68)]
    widths = [bar.get_width() for bar in bars]
    assert widths == sorted(widths) and widths[-1] == pytest.approx(told["size"][0])
    assert any(text.get_text().strip().startswith("output ×") for text in axes.texts), "of roles, the most harmful one is named"
    assert [direction(value)[0] for value in (0.9, -0.9, 0.1, np.nan)] == [
        "more of it, more harm",
        "more of it, less harm",
        "neither clearly",
        "has names",
    ]


def test_a_panel_for_each_of_the_properties_that_matter_most(prior: LearntPrior) -> None:
    told, curves = summary(prior, TABLE), dependence(prior, TABLE)
    figure = property_dependence(told, curves)
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes]
    assert titles == [PROPERTIES[name].label for name in told["property"][:N_PANELS]]
    of_error = figure.axes[list(told["property"]).index("output_error")]
    drawn = of_error.lines[0].get_ydata()
    np.testing.assert_allclose(drawn, np.log(curves["factor"][curves["property"] == "output_error"].to_numpy(float)))
    assert of_error.get_ylim()[0] < drawn.min() and drawn.max() < of_error.get_ylim()[1]
    of_role = figure.axes[list(told["property"]).index("role")]
    shown = [text.get_text() for text in of_role.get_yticklabels()]
    assert len(shown) == N_NAMES and shown[-1] == "output"
    figure.draw_without_rendering()
    boxes = spot_boxes(figure)
    assert any(box["text"].startswith("output error −") for box in boxes)


def test_figures_lie_beside_the_corpus_and_are_the_same_each_time(prior: LearntPrior, tmp_path: Path) -> None:
    write_figures(prior, TABLE, tmp_path / "team.parquet")
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(first) == {f"team.{name}.{end}" for name in ("summary", "dependence") for end in ("png", "svg")}
    write_figures(prior, TABLE, tmp_path / "team.parquet")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


@pytest.mark.parametrize(("low", "high"), [(0.98, 1.02), (0.7, 1.4), (0.3, 5), (1e-3, 20)])
def test_factors_are_round_and_few(low: float, high: float) -> None:
    @styled
    def draw():
        figure = new_figure(2)
        axes = figure.add_subplot()
        axes.set_xlim(np.log(low), np.log(high))
        factors_on(axes.xaxis)
        return figure

    figure = draw()
    figure.draw_without_rendering()
    texts = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert "×1" in texts and 1 <= len(texts) <= MAX_FACTORS and all(len(text) <= 6 for text in texts)
