"""The statistics of transfer against closed forms, and findings against corpora whose law is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from transfer_findings import BETWEEN, DOES_NOT, FINDINGS, HOLDS, NOT_DECIDED, Finding, check, log_ratio, of_role, verdict
from transfer_statistics import Judged, Said, estimate, resampled, summarize

from sedaq.sensitivity.predictor.cross_validation import noise_ceiling, spearman

from ..sensitivity.prior.synthetic import EXPONENT, LEVEL, OF_SCORE, OUTPUT, synthetic_corpus

# -- the bootstrap -----------------------------------------------------------------------------------------------------------------------


def test_the_bootstrap_over_groups_has_the_spread_of_nested_normals() -> None:
    """Of a mean over M groups of n: between/M + within/(M n), where each is estimated with its own number of values."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1.0, (30, 1)) + rng.normal(0, 2.0, (30, 10))
    mean, draws = resampled([10] * 30, lambda group, rows: values[group, rows].mean(), n_draws=3000)
    assert mean == pytest.approx(values.mean())
    of_groups = values.mean(1).var() / 30
    within = values.var(1).mean() / 10 / 30
    assert draws.var() == pytest.approx(of_groups + within, rel=0.1)
    low, high = estimate(float(mean), draws)["ci"]  # type: ignore[index]
    assert high - low == pytest.approx(2 * norm.ppf(0.95) * (of_groups + within) ** 0.5, rel=0.08)


def test_what_is_not_known_of_a_group_does_not_count() -> None:
    mean, draws = resampled([3, 3], lambda group, rows: np.array([np.nan if group else 2.0, np.nan]), n_draws=50)
    assert mean[0] == 2 and np.isnan(mean[1]) and set(draws[np.isfinite(draws)]) == {2.0}
    assert estimate(float(mean[1]), draws[:, 1]) is None


# -- scores ------------------------------------------------------------------------------------------------------------------------------

KNOWS, GUESSES = ("knows", 0), ("guesses", 0)


def a_model(number: int, *, n: int = 400, noise: float = 0.0, off: float = 0.3, width: float = 0.3, bias: float = 0.0) -> Judged:
    """Effects about predictions by a normal distribution of logarithms, each measured twice."""
    rng = np.random.default_rng(number)
    logs = rng.normal(0, 1.5, n)
    halves = np.exp(logs + off * rng.normal(size=n))[:, None] + noise * 2**0.5 * rng.normal(size=(n, 2))
    said = {KNOWS: Said(logs, logs + bias, np.full(n, width)), GUESSES: Said(rng.normal(size=n))}
    return Judged(f"model {number}", halves.mean(1), np.full(n, noise), halves, said)


def test_scores_are_those_of_normal_errors() -> None:
    share, log_ratio_, covered = a_model(1, n=4000).scores(np.arange(4000))
    assert share[0] == pytest.approx(6 / np.pi * np.arcsin(1.5 / (1.5**2 + 0.3**2) ** 0.5 / 2), abs=0.01), "of two normals"
    assert abs(share[1]) < 0.05 and np.isnan(log_ratio_[1]) and np.isnan(covered[1])
    assert log_ratio_[0] == pytest.approx(0.3 * norm.ppf(0.75), rel=0.06)
    assert covered[0] == pytest.approx(0.9, abs=0.02)
    narrow = a_model(1, n=4000, width=0.15).scores(np.arange(4000))
    assert narrow[2, 0] == pytest.approx(2 * norm.cdf(0.5 * norm.ppf(0.95)) - 1, abs=0.03)
    twice = a_model(1, n=4000, bias=np.log(2)).scores(np.arange(4000))
    assert twice[1, 0] == pytest.approx(np.log(2), abs=0.05)


def test_noise_lowers_the_ceiling_and_belongs_to_intervals() -> None:
    one = a_model(2, n=4000, noise=0.5, off=0.0, width=1e-3)
    share, _, covered = one.scores(np.arange(4000))
    ceiling = noise_ceiling(one.halves)
    assert ceiling < 0.97 and share[0] == pytest.approx(spearman(one.said[KNOWS].order, one.effects) / ceiling)
    assert share[0] == pytest.approx(1, abs=0.05), "it knows all that can be known"
    assert covered[0] == pytest.approx(0.9, abs=0.02)


def test_the_summary_has_values_paired_differences_and_models() -> None:
    models = [a_model(number, n=60) for number in range(6)]
    found = summarize(models, [(KNOWS, GUESSES), (KNOWS, ("absent", 3))], n_draws=200)
    knows, guesses = found["predictors"]
    (difference,) = found["differences"]
    assert (difference["predictor"], difference["against"], difference["against_probes"]) == ("knows", "guesses", 0)
    assert difference["share"]["value"] == pytest.approx(knows["share"]["value"] - guesses["share"]["value"])
    assert difference["share"]["ci"][0] > 0.5 and difference["log_ratio"] is None and guesses["covered"] is None
    own = [row for row in found["models"] if row["predictor"] == "knows"]
    assert len(own) == 6 and np.mean([row["share"] for row in own]) == pytest.approx(knows["share"]["value"])
    low, high = knows["share"]["ci"]
    assert low < knows["share"]["value"] < high < 1.01
    # A predictor that is the same but for its name differs by nothing, however wide its own interval is.
    twins = [
        Judged(one.model, one.effects, one.noise, one.halves, {KNOWS: one.said[KNOWS], ("twin", 0): one.said[KNOWS]}) for one in models
    ]
    assert summarize(twins, [(KNOWS, ("twin", 0))], n_draws=50)["differences"][0]["share"] == {"value": 0.0, "ci": [0.0, 0.0]}


# -- findings ----------------------------------------------------------------------------------------------------------------------------


def corpus(n_models: int = 6, **how: float) -> pd.DataFrame:
    """Gains are the same for all layers, so that nothing but the error, roles and what they see tells them apart."""
    table = synthetic_corpus(n_models, 24, **how)  # type: ignore[arg-type]
    factor = np.exp(-OF_SCORE * table["gain"])
    return table.assign(**{name: table[name] * factor for name in ("effect", "half_1", "half_2", "se")})


def test_the_ratio_of_a_kind_of_layers_comes_back() -> None:
    """Layers of role output do twice as much at equal error."""
    last = Finding("The last layer is sensitive.", of_role("output"))
    row = check(last, corpus(8, spread=0.1))
    assert row["verdict"] == HOLDS and row["n_models"] == 8 and row["n_layers"] == 8 * 6
    low, high = row["ratio"]["ci"]
    assert low < np.exp(OUTPUT) < high and high / low < 1.6
    assert {own["model"] for own in row["models"]} == {f"model {number}" for number in range(8)}


def test_errors_are_adjusted_for() -> None:
    """Layers of another role have a third of the error, and so do less; at equal error they are as all others."""
    table = corpus(8, spread=0.05)
    role = (table["role"] == "query").to_numpy()
    assert role.any()
    moved = table["output_error"] - np.where(role, np.log(3), 0.0)
    factor = np.where(role, 3.0**-EXPONENT, 1.0)
    table = table.assign(output_error=moved, **{name: table[name] * factor for name in ("effect", "half_1", "half_2", "se")})
    row = check(Finding("Queries are sensitive.", of_role("query")), table)
    assert row["ratio"]["value"] == pytest.approx(1, abs=0.25) and row["ratio_at_any_error"]["value"] < 0.5
    assert row["verdict"] != HOLDS


def test_models_levels_and_noise_do_not_matter() -> None:
    """Half of the effects are below their noise."""
    table = corpus(8, spread=0.05, noise=0.1, level=3 * LEVEL)
    assert (table["effect"] < 2 * table["se"]).mean() > 0.3
    row = check(Finding("The last layer is sensitive.", of_role("output")), table)
    low, high = row["ratio"]["ci"]
    assert low < np.exp(OUTPUT) < high and row["verdict"] == HOLDS


def test_intervals_hold_over_corpora() -> None:
    inside = []
    for seed in range(20):
        row = check(Finding("", of_role("output")), corpus(6, seed=seed), n_draws=500)
        inside.append(row["ratio"]["ci"][0] < np.exp(OUTPUT) < row["ratio"]["ci"][1])
    assert np.mean(inside) >= 0.7, "6 models are few, and a bootstrap of few is a little narrow"


def test_kinds_of_models_are_compared_and_too_few_are_not() -> None:
    table = corpus(8, spread=0.05)
    u_nets = {f"model {number}" for number in range(4)}
    last = ((table["role"] == "output") & ~table["model"].isin(u_nets)).to_numpy()
    table = table.assign(**{name: table[name] * np.where(last, 3.0, 1.0) for name in ("effect", "half_1", "half_2", "se")})
    finding = Finding("The last layer is more sensitive in transformers.", of_role("output"), among=BETWEEN)
    row = check(finding, table, u_nets=u_nets)
    assert row["verdict"] == HOLDS and row["ratio"]["ci"][0] < 3 < row["ratio"]["ci"][1]
    turned = check(finding, table, u_nets={f"model {number}" for number in range(4, 8)})
    assert turned["verdict"] == DOES_NOT
    few = check(finding, table, u_nets={"model 0"})
    assert few["verdict"] == NOT_DECIDED and few["ratio"] is None and few["why"] == "too few models have such layers"


def test_the_draws_of_a_ratio_spread_as_its_layers_do() -> None:
    """Of one model: at each rate the difference of two means of layers."""
    spread, n_layers = 0.4, 24
    ratios = [
        log_ratio(rows, (rows["role"] == "output").to_numpy(), at_equal_error=True)
        for _, rows in corpus(30, spread=spread).groupby("model")
    ]
    image = np.log(3.0) / 4**0.5 * (3 / 4) ** 0.5  # a quarter of the layers, by chance of either kind
    expected = (spread**2 + image**2) ** 0.5 * (1 / 6 + 1 / (n_layers - 6)) ** 0.5
    assert np.mean([ratio.draws.std() for ratio in ratios]) == pytest.approx(expected, rel=0.25)
    assert np.std([ratio.value for ratio in ratios]) == pytest.approx(expected, rel=0.35)


def test_what_nothing_here_can_tell_says_why() -> None:
    row = check(FINDINGS[-1], corpus(2))
    assert row["verdict"] == NOT_DECIDED and row["ratio"] is None and "uniform grid" in row["why"]
    assert [verdict([1.1, 1.3]), verdict([0.5, 1.1]), verdict([0.8, 1.4])] == [HOLDS, DOES_NOT, NOT_DECIDED]
