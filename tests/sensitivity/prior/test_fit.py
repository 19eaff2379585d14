"""Priors learnt from corpora whose law is known: it comes back, intervals hold on models left out, and folds leak nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sedaq.errors import DamagedError, InputError
from sedaq.kernels.timing import clock
from sedaq.sensitivity.predictor.cross_validation import spearman
from sedaq.sensitivity.prior import fit as module
from sedaq.sensitivity.prior.fit import HeldOutModels, fit_members, fit_prior, folds, intervals_hold, leave_one_out, model_levels, widths
from sedaq.sensitivity.prior.model import MAX_BYTES, Z90, LearntPrior, TreeSettings, spread
from sedaq.sensitivity.prior.properties import PROPERTIES, columns
from sedaq.sensitivity.prior.response import Response
from sedaq.sensitivity.prior.tuning import choose_settings
from sedaq.storage import read_json, write_json

from .synthetic import LEVEL, SPREAD, log_effect, synthetic_corpus

NEW = 100  # number of the first model that no prior has seen


@pytest.fixture(scope="module")
def prior() -> LearntPrior:
    return fit_prior(synthetic_corpus(10, 12), settings=TreeSettings(n_trees=25))


def test_the_law_comes_back_on_models_that_were_not_seen(prior: LearntPrior) -> None:
    table = synthetic_corpus(10, 20, first=NEW, spread=0.0, level=0.0)
    truth, found = log_effect(table), prior.predict(table)
    off = found.mean - truth
    assert abs(np.median(off)) < 2 * LEVEL / 10**0.5 and (off - np.median(off)).std() < 0.35
    at_two_bits = (table["rate"] == 2).to_numpy()
    by_score = table["gradient_score"].to_numpy()
    assert spearman(found.mean, truth) > 0.98 and spearman(by_score, truth) < 0.97
    assert spearman(found.mean[at_two_bits], truth[at_two_bits]) > 0.93 > spearman(by_score[at_two_bits], truth[at_two_bits]) + 0.03
    # The line alone knows nothing of layers that see the image.
    first = table["sees_image"] == 1
    line = prior.members[0].line(table["output_error"].to_numpy(), table["gradient_score"].to_numpy())
    by_trees = found.mean - line
    assert by_trees[first].mean() - by_trees[~first].mean() > 0.5 * np.log(3)


def test_levels_and_widths_are_those_of_the_corpus(prior: LearntPrior) -> None:
    assert LEVEL / 2 < prior.level < 2 * LEVEL
    table = synthetic_corpus(4, 20, first=NEW)
    assert SPREAD / 1.5 < np.median(prior.predict(table).width) < 2 * SPREAD


def test_ninety_percent_intervals_hold_ninety_percent_on_models_left_out() -> None:
    """Over several corpora: each is one draw of few models."""
    inside, quality = [], []
    for seed in range(3):
        learnt = fit_prior(synthetic_corpus(8, 12, seed=seed), settings=TreeSettings(n_trees=10))
        quality.append(learnt.quality["covered"])
        for number in range(8):
            table = synthetic_corpus(1, 12, seed=seed, first=NEW + number)
            response, found = Response.of(table), learnt.predict(table)
            width = np.sqrt((found.std * response.slope(found.mean)) ** 2 + response.noise_variance(found.mean))
            inside.append(np.mean(np.abs(response.residual(found.mean)) <= Z90 * width))
    assert 0.84 < np.mean(inside) < 0.97
    assert 0.82 < np.mean(quality) < 0.98, "what a prior says of itself"


def test_more_error_is_never_less_harm(prior: LearntPrior) -> None:
    table = synthetic_corpus(2, 10, first=NEW)
    for step in (0.1, 0.7, 2.0):
        worse = table.assign(output_error=table["output_error"] + step, gradient_score=table["gradient_score"] + step)
        assert (prior.predict_members(worse) >= prior.predict_members(table) - 1e-6).all()


def test_what_is_not_known_does_not_matter_much(prior: LearntPrior) -> None:
    table = synthetic_corpus(3, 20, first=NEW)
    unknown = [
        name for name, one in PROPERTIES.items() if not one.names and name not in ("output_error", "gradient_score", "gain", "sees_image")
    ]
    blank = table.assign(**dict.fromkeys(unknown, np.nan))
    assert spearman(prior.predict(blank).mean, prior.predict(table).mean) > 0.9
    without = table.assign(gradient_score=np.nan, gain=np.nan)
    assert np.isfinite(prior.predict(without).mean).all()


# -- folds -------------------------------------------------------------------------------------------------------------------------------


def test_folds_are_whole_models() -> None:
    groups = np.array([0, 1, 0, 2, 1])
    found = folds(groups)
    assert [own.tolist() for _, own in found] == [[0, 2], [1, 4], [3]]
    assert all(set(groups[learnt]) & set(groups[own]) == set() for learnt, own in found)


def test_what_is_said_of_a_model_does_not_depend_on_its_labels() -> None:
    """Two runs of one model have one fingerprint, and are left out together."""
    table = synthetic_corpus(4, 8)
    twice = table.assign(fingerprint=table["fingerprint"].where(table["model"] != "model 3", table["fingerprint"][0]))
    settings = TreeSettings(n_trees=10)
    first = leave_one_out(twice, settings, seed=0, n_members=2)
    own = (twice["fingerprint"] == twice["fingerprint"][0]).to_numpy()
    assert len(set(twice["model"][own])) == 2
    changed = twice.assign(effect=np.where(own, 1000 * twice["effect"], twice["effect"]))
    again = leave_one_out(changed, settings, seed=0, n_members=2)
    np.testing.assert_array_equal(first.logs[:, own], again.logs[:, own])
    assert not np.allclose(first.logs[:, ~own], again.logs[:, ~own])


def test_intervals_of_a_model_have_the_widths_of_the_others() -> None:
    held_out = leave_one_out(synthetic_corpus(5, 8), TreeSettings(n_trees=5), seed=0, n_members=2)
    own = held_out.response.groups == 2
    inside = intervals_hold(held_out)
    labels = held_out.response
    far = Response(np.where(own, 1e4 * labels.effects, labels.effects), labels.noise, labels.weights, labels.groups)
    assert not intervals_hold(HeldOutModels(held_out.logs, far))[own].any() and inside[own].any()


# -- widths, by hand ---------------------------------------------------------------------------------------------------------------------


def made_up(n_models: int, n_rows: int, level: float, width: float, seed: int = 0) -> HeldOutModels:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_models), n_rows)
    effects = np.exp(rng.normal(0, level, n_models)[groups] + rng.normal(0, width, len(groups)))
    return HeldOutModels(np.zeros((1, len(groups))), Response(effects, np.zeros(len(groups)), np.ones(len(groups)), groups))


def test_levels_and_widths_of_normal_residuals() -> None:
    held_out = made_up(200, 50, 0.6, 0.3)
    level, residual, scale = widths(held_out)
    assert level == pytest.approx(0.6, rel=0.12) and residual == pytest.approx(0.3, rel=0.05) and scale == pytest.approx(1, rel=0.05)
    few = np.mean([widths(made_up(5, 50, 0.6, 0.3, seed))[0] for seed in range(40)])
    assert few > 0.65, "of few models it is not well known"
    levels = model_levels(held_out)
    means = [np.log(held_out.response.effects[held_out.response.groups == group]).mean() for group in range(200)]
    np.testing.assert_allclose(levels, means, atol=0.01)


def test_the_spread_of_members_does_not_count_their_levels() -> None:
    logs = np.array([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    np.testing.assert_allclose(spread(logs), 0, atol=1e-12)
    np.testing.assert_allclose(spread(np.array([[0.0, 2.0], [2.0, 0.0]])), 2**0.5)
    np.testing.assert_allclose(spread(logs[:1]), 0)


# -- files and limits --------------------------------------------------------------------------------------------------------------------


def test_a_prior_is_read_back_and_predicts_the_same(prior: LearntPrior, tmp_path: Path) -> None:
    table = synthetic_corpus(2, 10, first=NEW)
    prior.save(tmp_path / "prior.json")
    again = LearntPrior.load(tmp_path / "prior.json")
    np.testing.assert_array_equal(again.predict_members(table), prior.predict_members(table))
    assert again.to_json() == prior.to_json() and again.models == [f"model {number}" for number in sorted(map(str, range(10)))]


def test_a_prior_of_other_properties_or_broken_trees_is_refused(prior: LearntPrior, tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    prior.save(path)
    content = read_json(path, "prior")
    write_json(path, "prior", {**content, "columns": content["columns"][1:]})
    with pytest.raises(DamagedError, match="names other properties than this version has; run `sedaq learn` again"):
        LearntPrior.load(path)
    member = content["members"][0]
    tree = {**member["trees"][0], "split_indices": [len(columns())] * len(member["trees"][0]["split_indices"])}
    write_json(path, "prior", {**content, "members": [{**member, "trees": [tree]}]})
    with pytest.raises(DamagedError, match=r"tree 0: its nodes are no tree; run `sedaq learn` again"):
        LearntPrior.load(path)
    write_json(path, "prior", {**content, "level": -1.0})
    with pytest.raises(DamagedError, match="field 'level' must be greater than 0"):
        LearntPrior.load(path)


def test_the_largest_prior_is_small_and_predicts_many_layers_at_once(tmp_path: Path) -> None:
    table = synthetic_corpus(4, 60)
    largest = TreeSettings(n_trees=80, max_depth=3, min_child_weight=1.0, reg_lambda=1.0)
    members = fit_members(table, largest, seed=0)
    whole = LearntPrior(members, largest, 0.5, 0.3, 1.0, ["a"], "0")
    whole.save(tmp_path / "prior.json")
    assert (tmp_path / "prior.json").stat().st_size < MAX_BYTES
    rows = synthetic_corpus(1, 803 * 8 // 6 + 1, first=NEW)
    start = clock()
    assert len(whole.predict(rows).mean) >= 803 * 8
    assert clock() - start < 1


def test_one_model_is_refused_in_a_line() -> None:
    with pytest.raises(
        InputError, match=r"the corpus: holds one model only \(model 0\), so that none can be left out; name runs of two or more"
    ) as caught:
        fit_prior(synthetic_corpus(1))
    assert "\n" not in str(caught.value)
    assert fit_prior(synthetic_corpus(2, 6), settings=TreeSettings(n_trees=2)).quality["covered"] is None, "two have no widths of others"


# -- Optuna ------------------------------------------------------------------------------------------------------------------------------


def test_the_study_is_kept_and_goes_on_as_if_it_had_not_been_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = synthetic_corpus(3, 5)
    whole = choose_settings(table, tmp_path / "whole.jsonl", n_trials=4)
    first = choose_settings(table, tmp_path / "parts.jsonl", n_trials=2)
    assert choose_settings(table, tmp_path / "parts.jsonl", n_trials=4) == whole
    monkeypatch.setattr(module, "fit_members", lambda *_, **__: pytest.fail("tried again"))
    assert choose_settings(table, tmp_path / "parts.jsonl", n_trials=4) == whole and isinstance(first, TreeSettings)


def test_a_file_that_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.jsonl").write_text("no study\n")
    with pytest.raises(InputError, match="not a study of Optuna"):
        choose_settings(synthetic_corpus(2, 4), tmp_path / "study.jsonl", n_trials=1)
