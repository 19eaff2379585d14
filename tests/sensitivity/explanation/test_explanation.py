"""What is said of layers, roles and blocks, on an additive model that is known."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from sedaq.sensitivity.explanation import explanation as module
from sedaq.sensitivity.explanation.explanation import (
    Explanation,
    additivity,
    bounds,
    fitted_surrogates,
    group_rows,
    interaction_rows,
    stability,
)
from sedaq.sensitivity.explanation.findings import findings
from sedaq.sensitivity.predictor.predictor import Predictor
from sedaq.sensitivity.probing.probes import Probes

from ..surrogates import ERRORS, MENU, N_LAYERS, NAMES, RATES, error_of, known_surrogate, random_probes

RIDGE = 0.3


def explain(probes: Probes) -> Explanation:
    """Explanation.of for a subject without files."""
    surrogate, *draws = fitted_surrogates(probes, RIDGE, 0)
    return Explanation(probes, [MENU] * N_LAYERS, np.tile([ERRORS[rate] for rate in RATES], (N_LAYERS, 1)), surrogate, draws)


@pytest.fixture(scope="module")
def explained() -> Explanation:
    return explain(random_probes(120, noise=0.05))


def test_costs_and_intervals_hold_the_truth(explained: Explanation) -> None:
    held = []
    for layer in range(N_LAYERS - 1):  # the last layer's harm is beneath the noise
        for entry in range(len(RATES) - 1):
            value, low, high = bounds(explained.cost([(layer, entry)]))
            errors = np.zeros(N_LAYERS)
            errors[layer] = ERRORS[RATES[entry]]
            truth = known_surrogate().excess(errors)
            held.append(low * 0.9 <= truth <= high * 1.1)
            assert low <= high and value >= 0
    assert np.mean(held) > 0.7
    assert bounds(explained.cost([(2, len(RATES) - 1)])) == (0, 0, 0), "as it is"


def test_groups_cost_more_than_their_layers_apart(explained: Explanation) -> None:
    table = group_rows(explained)
    assert set(table["name"]) == {"even", "odd", "blocks.0", "blocks.1", "blocks.2"}
    assert set(table["rate"]) == set(RATES[:-1])
    row = table[(table["name"] == "even") & (table["rate"] == 1.5)].iloc[0]
    apart = sum(bounds(explained.cost([(layer, 0)]))[0] for layer in (0, 2, 4))
    assert row["cost"] > apart and row["cost_low"] < row["cost"] < row["cost_high"] and row["n_layers"] == 3
    falling = table[table["name"] == "odd"].sort_values("rate")["cost"].to_numpy()
    assert (np.diff(falling) < 0).all()


def test_interactions_are_what_two_layers_cost_beyond_their_sum(explained: Explanation) -> None:
    probes = explained.probes
    predictor = Predictor.fit("fid", probes, error_of=error_of, n_members=4).without_trees()
    table = interaction_rows(explained, predictor)
    assert len(table) == N_LAYERS * (N_LAYERS - 1) / 2
    first = table.iloc[0]
    assert {first["layer"], first["other"]} == {NAMES[1], NAMES[4]}, "the two most sensitive"
    np.testing.assert_allclose(table["interaction"], table["together"] - table["alone"] - table["other_alone"], rtol=1e-6, atol=1e-6)
    lowest = np.zeros(N_LAYERS)
    lowest[[1, 4]] = ERRORS[1.5]
    surrogate = known_surrogate()
    terms = surrogate.terms(lowest)
    assert first["interaction"] == pytest.approx(surrogate.of_total(terms.sum()) - surrogate.of_total(terms).sum(), rel=0.3)
    assert first["low"] <= first["interaction"] <= first["high"]


def test_assuming_additivity_errs_where_errors_do_not_add(explained: Explanation) -> None:
    probes = explained.probes
    found = additivity(explained, probes.values)
    middle, low, high = found["measured_over_sum_alone"]
    assert low <= middle <= high and middle > 1.2
    surrogate, (ratio, least, greatest) = known_surrogate(), found["together_over_apart"]
    together = surrogate.excess(probes.errors)
    clear = (together > 0) & (probes.labels.excess > 3 * probes.labels.se)
    apart = surrogate.of_total(surrogate.terms(probes.errors)).sum(1)
    off = np.median(np.log(together[clear] / apart[clear]))
    assert found["error_of_additivity"] == pytest.approx(off, rel=0.2) and off > 0.15
    assert found["error_of_predictor"] == pytest.approx(0, abs=1e-9)
    terms = surrogate.terms(np.full(N_LAYERS, ERRORS[RATES[0]]))
    assert least <= ratio <= greatest and ratio == pytest.approx(
        surrogate.of_total(terms.sum()) / surrogate.of_total(terms).sum(), rel=0.15
    )
    silent = replace(probes, labels=replace(probes.labels, se=probes.labels.excess + 1))
    assert additivity(replace(explained, probes=silent), probes.values) == {}


def test_halves_agree_where_probes_are_many_and_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "N_SPLITS", 3)
    lowest = np.full(N_LAYERS, ERRORS[1.5])
    clear = stability(random_probes(120, noise=0.02), lowest, RIDGE, 0)
    assert clear["least"] <= clear["rank_correlation_of_halves"] <= clear["greatest"] and clear["rank_correlation_of_halves"] > 0.9
    lost = stability(random_probes(12, noise=1.5, informed=False), lowest, RIDGE, 0)
    assert lost["rank_correlation_of_halves"] < clear["rank_correlation_of_halves"]


# -- sentences ---------------------------------------------------------------------------------------------------------------------------


def test_sentences_follow_the_numbers(explained: Explanation) -> None:
    text = findings(explained, "Fréchet distance", (0.9, 1.0))
    assert all(sentence.endswith(".") for sentence in text)
    assert any(re.search(r"blocks\.1\.l.*of the harm at 1\.5 bits everywhere; with 4 bits there that plan costs", s) for s in text)
    assert any(s.startswith("even: 1.5 bits cost") and "keep at" in s for s in text), text
    assert any("1.5 bits cost less than" in s and "block 2" in s for s in text), "the last layer is harmless"
    together = next(s for s in text if "times what they cost apart" in s)
    value, low, high = map(float, re.search(r"cost ([\d.]+) \(([\d.]+) to ([\d.]+)\) times", together).groups())
    assert low <= value <= high and low > 1.05


def test_nothing_is_said_where_intervals_say_nothing(explained: Explanation) -> None:
    assert findings(explained, "Fréchet distance", (-0.2, 0.5)) == [], "held-out probes are not ordered"
    rng = np.random.default_rng(0)
    draws = [
        replace(surrogate, log_slopes=surrogate.log_slopes + 3 * rng.normal(size=N_LAYERS), power=rng.uniform(0.5, 2.0))
        for surrogate in explained.draws
    ]
    assert findings(replace(explained, draws=draws), "Fréchet distance", (0.9, 1.0)) == [], "the draws disagree on everything"
