"""Figures of properties: bars that add up, and a table that is checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sedaq.errors import InputError
from sedaq.reports.inputs import read_factors, read_run
from sedaq.reports.numbers import sources_line
from sedaq.reports.property_figures import N_PARTS, lowest_factors, property_factors, property_sizes_table, waterfall
from sedaq.sensitivity.prior.properties import PROPERTIES

from .conftest import factors_frame, layer_names, write_run


def test_a_waterfall_ends_at_the_harm_of_its_layer(tmp_path: Path) -> None:
    data = read_run(write_run(tmp_path / "run"))
    rows = lowest_factors(data)
    assert set(rows["rate"]) == {1.5}
    own = rows[rows["layer"] == "proj_out_1"]
    bars = waterfall(own)
    assert len(bars) == N_PARTS + 1 and bars[0][1] == 0
    assert all(before[2] == after[1] for before, after in zip(bars, bars[1:], strict=False))
    assert bars[-1][2] == pytest.approx(np.log(own["harm"].iloc[0]))
    sizes = [abs(bar.end - bar.start) for bar in bars[:-1]]
    assert all(bar.low <= bar.end <= bar.high for bar in bars[:-1])
    assert sizes == sorted(sizes, reverse=True)
    figure = property_factors(data)
    labels = [text.get_text().strip() for text in figure.axes[0].get_yticklabels()]
    assert sum(label in layer_names(4) for label in labels) == 5 and f"{len(PROPERTIES) - N_PARTS} other properties" in labels


def test_the_most_telling_property_comes_first(tmp_path: Path) -> None:
    table = property_sizes_table(read_run(write_run(tmp_path / "run")))
    assert len(table) == len(PROPERTIES) and table["factor"].is_monotonic_decreasing and (table["factor"] >= 1).all()
    assert (table["low"] <= table["factor"]).all() and (table["factor"] <= table["high"]).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(columns="factor"), "not the table of properties"),
        (lambda table: table.assign(property="colour"), "names other properties than this version has"),
        (lambda table: table.assign(factor=-1.0), "a factor is not above 0"),
        (lambda table: table.assign(low="much"), "not the table of properties"),
    ],
)
def test_a_table_that_is_not_of_properties_is_refused_in_a_line(change, said: str, tmp_path: Path) -> None:
    change(factors_frame(["a", "b"])).to_csv(tmp_path / "properties.csv", index=False)
    with pytest.raises(InputError, match=said) as caught:
        read_factors(tmp_path / "properties.csv")
    assert "\n" not in str(caught.value) and read_factors(tmp_path / "none.csv") is None


def test_where_a_prediction_comes_from_is_one_sentence() -> None:
    parts = {"prior": 0.81, "probes": 0.12, "interactions": 0.0, "unexplained": 0.07, "prior_of": "corpus 0123"}
    assert sources_line(parts) == (
        "Of the variation of held-out probes the prior (corpus 0123) explains 81 %, this run's probes 12 %, interactions 0 %; 7 % are left."
    )
