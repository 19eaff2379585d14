"""A learnt prior at work: in the additive model, in searches without a probe, in the adaptive design and in fits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import norm

from sedaq.errors import DamagedError, InputError
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_front, search_run
from sedaq.sensitivity.predictor.additive import SCORE_FACTOR, _Objective, fit_additive, fit_common
from sedaq.sensitivity.predictor.cross_validation import spearman
from sedaq.sensitivity.predictor.fitting import fit, load_predictor
from sedaq.sensitivity.predictor.layer_priors import LayerPriors, LearntLayers
from sedaq.sensitivity.predictor.predictor import Predictor
from sedaq.sensitivity.predictor.ridge import choose_ridge, usual_ridge
from sedaq.sensitivity.predictor.sources import sources
from sedaq.sensitivity.predictor.unfitted import predictor_of
from sedaq.sensitivity.prior import use
from sedaq.sensitivity.prior.fit import fit_prior
from sedaq.sensitivity.prior.model import LearntPrior, TreeSettings
from sedaq.sensitivity.prior.use import known_prior, layers_of
from sedaq.sensitivity.probing import adaptive
from sedaq.sensitivity.probing.adaptive import Adaptive
from sedaq.sensitivity.probing.designs import design_plans
from sedaq.sensitivity.probing.layer_statistics import LayerStatistics
from sedaq.sensitivity.probing.measurer import Measurer
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.probing.probes import MIN_PROBES, LayerTable, Probes, layer_table
from sedaq.sensitivity.run import Run

from ..conftest import SETTINGS
from ..surrogates import EXPONENT, FULL_PRECISION, N_LAYERS, SLOPES, error_of, known_surrogate, random_probes, table
from .synthetic import synthetic_corpus

pytestmark = pytest.mark.usefixtures("nothing_shipped")
LEARNT = LearntLayers(np.log(SLOPES / FULL_PRECISION), np.full(N_LAYERS, EXPONENT), np.full(N_LAYERS, 0.4), 0.1, 0.5, "a corpus")


def taught(learnt: LearntLayers = LEARNT) -> LayerTable:
    """Scores that know nothing, and what other models taught."""
    plain = table(informed=False)
    return replace(plain, priors=replace(plain.priors, learnt=learnt))


def taught_probes(n: int, *, seed: int = 0, learnt: LearntLayers = LEARNT) -> Probes:
    return replace(random_probes(n, seed=seed, informed=False), table=taught(learnt))


# -- in the additive model ---------------------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_loss_with_a_learnt_prior() -> None:
    probes = taught_probes(20, learnt=replace(LEARNT, widths=np.linspace(0.1, 1, N_LAYERS)))
    objective = _Objective(probes.errors, probes.labels, probes.table.priors, 0.3)
    start = objective.start() + 0.1 * np.random.default_rng(0).normal(size=len(objective.start()))
    size = np.linalg.norm(objective(start)[1])
    assert check_grad(lambda z: objective(z)[0], lambda z: objective(z)[1], start) < 1e-4 * size


def test_without_a_learnt_prior_layers_are_where_their_scores_have_them() -> None:
    probes = random_probes(30)
    plain = LayerPriors(probes.table.priors.log_errors, probes.table.priors.log_scores)
    assert plain.learnt is None and (plain.relative_widths == 1).all() and plain.drawn(np.random.default_rng(0)) is plain
    objective = _Objective(probes.errors, probes.labels, plain, 0.3)
    n = N_LAYERS
    u = np.random.default_rng(1).normal(size=len(objective.start()))
    theta, p, *_ = objective.parameters(u)
    scores = plain.log_scores - plain.log_scores.mean()
    b, q, _, log_p, _ = u[2 * n : 2 * n + 5] / 30**0.5
    np.testing.assert_array_equal(theta, b + (SCORE_FACTOR + q) * scores + u[:n] / 0.3**0.5)
    np.testing.assert_array_equal(p, np.exp(np.log(1.5) + log_p + u[n : 2 * n]))


def test_two_probes_find_the_level_and_the_prior_the_order() -> None:
    unseen = random_probes(200, seed=9)
    few = taught_probes(3, seed=5)
    surrogate = fit_additive(few.errors, few.labels, few.table.priors, usual_ridge(few.table.priors))
    assert spearman(surrogate.excess(unseen.errors), unseen.values) > 0.97
    blind = random_probes(3, seed=5, informed=False)
    other = fit_additive(blind.errors, blind.labels, blind.table.priors, 0.3)
    assert spearman(other.excess(unseen.errors), unseen.values) < spearman(surrogate.excess(unseen.errors), unseen.values) - 0.02


def test_layers_that_the_prior_is_sure_of_deviate_less() -> None:
    """The prior is wrong of two layers by the same factor, and sure of all but the first of them."""
    wrong = LEARNT.log_slopes.copy()
    wrong[[1, 4]] -= 1.5
    widths = np.full(N_LAYERS, 0.02)
    widths[1] = 0.5
    probes = taught_probes(25, learnt=replace(LEARNT, log_slopes=wrong, widths=widths))
    surrogate = fit_additive(probes.errors, probes.labels, probes.table.priors, usual_ridge(probes.table.priors))
    off = surrogate.log_slopes - known_surrogate().log_slopes
    off -= off[[0, 2, 3, 5]].mean()
    assert abs(off[1]) < 0.8 < abs(off[4]) - 0.3


def test_many_probes_overrule_a_wrong_prior() -> None:
    wrong = replace(LEARNT, log_slopes=np.random.default_rng(3).normal(0, 2, N_LAYERS))
    probes = taught_probes(200, learnt=wrong)
    held_out = choose_ridge(probes.errors, probes.labels, probes.table.priors, 0)
    unseen = random_probes(100, seed=9)
    found = fit_additive(probes.errors, probes.labels, probes.table.priors, held_out.ridge)
    assert held_out.ridge < 3 and spearman(found.excess(unseen.errors), unseen.values) > 0.98


def test_the_common_numbers_alone_leave_layers_where_the_prior_has_them() -> None:
    probes = taught_probes(30)
    surrogate = fit_common(probes.errors, probes.labels, probes.table.priors)
    steps = np.diff(surrogate.log_slopes) / np.diff(LEARNT.log_slopes)
    np.testing.assert_allclose(steps, steps[0])
    assert steps[0] == pytest.approx(1, abs=0.1) and (surrogate.offsets == 0).all() and np.ptp(surrogate.exponents) < 1e-12


def test_where_a_prediction_comes_from_adds_up() -> None:
    unseen = taught_probes(60)
    truth = known_surrogate().excess(unseen.errors) + unseen.full_precision
    found = sources(unseen, truth, truth, 0)
    assert found["prior"] + found["probes"] + found["interactions"] + found["unexplained"] == pytest.approx(1)
    assert found["prior"] > 0.9 and found["interactions"] == 0 and found["prior_of"] == "corpus a corpus"
    blind = sources(random_probes(60, informed=False), truth, truth, 0)
    assert blind["prior"] < found["prior"] - 0.1 < found["prior"] and blind["probes"] > found["probes"] + 0.1
    assert blind["prior_of"] == "gradient scores"


# -- without a probe ---------------------------------------------------------------------------------------------------------------------


def test_draws_have_the_widths_of_the_prior() -> None:
    learnt = replace(LEARNT, widths=np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    rng = np.random.default_rng(0)
    draws = [learnt.drawn(rng) for _ in range(4000)]
    slopes = np.array([draw.log_slopes for draw in draws])
    np.testing.assert_allclose(slopes.mean(0), learnt.log_slopes, atol=0.05)
    np.testing.assert_allclose(slopes.std(0), learnt.widths, rtol=0.1)
    np.testing.assert_allclose(np.log([draw.exponents for draw in draws]).std(0), 0.1, rtol=0.1)


def test_intervals_without_a_probe_hold_over_models_that_are_drawn_from_the_prior() -> None:
    """Models with level, slopes and exponents as the prior has them: 90 % intervals of random plans hold about 90 %."""
    from sedaq.sensitivity.predictor.additive import Additive

    plans = random_probes(40, seed=3)
    predictor = Predictor.of_prior("fid", taught(), full_precision=FULL_PRECISION, error_of=error_of)
    mean, std = predictor.predict_arrays(plans.errors, plans.rates)
    logs = predictor.predict_members(plans.errors, plans.rates)
    inside = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        own = LEARNT.drawn(rng)
        slopes = own.log_slopes + LEARNT.level * rng.normal() + np.log(FULL_PRECISION)
        power, saturation = np.exp(0.1 / 0.1**0.5 * rng.normal()), FULL_PRECISION * np.exp(0.2 * rng.normal())
        model = Additive.straight(slopes, own.exponents, power, saturation, taught().priors.log_errors)
        measured = np.log(model.excess(plans.errors) + predictor.floor)
        width = np.sqrt(logs.var(0, ddof=1) + predictor.residual**2)
        inside.append(np.abs(measured - logs.mean(0)) < norm.ppf(0.95) * width)
    assert 0.82 < np.mean(inside) < 0.97
    assert (mean > FULL_PRECISION - 1e-9).all() and (std > 0).all()


def test_a_predictor_with_a_learnt_prior_is_read_back_and_one_of_before_still_loads(tmp_path: Path) -> None:
    probes = taught_probes(24)
    predictor = Predictor.fit("fid", probes, error_of=error_of)
    predictor.save(tmp_path, {"subject": "s", "probes": "p"})
    again, _ = Predictor.load(tmp_path, error_of)
    np.testing.assert_array_equal(again.predict_arrays(probes.errors, probes.rates), predictor.predict_arrays(probes.errors, probes.rates))
    assert again.table.priors.learnt is not None and again.table.priors.learnt.to_json() == LEARNT.to_json()
    plain = Predictor.fit("fid", random_probes(24), error_of=error_of)
    plain.save(tmp_path, {"subject": "s", "probes": "p"})
    assert "learnt" not in (tmp_path / "additive.json").read_text() and Predictor.load(tmp_path, error_of)[0].table.priors.learnt is None


# -- in a run ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LearntPrior:
    """A user's own prior."""
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    learnt = fit_prior(synthetic_corpus(4, 8), settings=TreeSettings(n_trees=5))
    learnt.save(use.personal_prior())
    return learnt


@pytest.fixture
def unprobed(probed: Path, subject: str, tmp_path: Path) -> Run:
    """A copy of the probed run without its probes: menus, encodings and layer statistics are there."""
    shutil.copytree(probed, tmp_path / "run")
    for path in (tmp_path / "run").glob("probes.jsonl*"):
        path.unlink()
    return Run.open(tmp_path / "run", subject=subject)


def test_without_any_prior_a_run_that_was_not_probed_is_refused_in_a_line(
    unprobed: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    assert known_prior() is None
    with pytest.raises(InputError, match="has no predictor, and no prior was learnt from other models; run `sedaq probe`") as caught:
        search_run(unprobed, Budget(bits=3.0))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("prior")
def test_a_search_without_a_probe_has_intervals_and_says_that_nothing_was_measured(unprobed: Run) -> None:
    found = search_run(unprobed, Budget(bits=3.0), SearchConfig(trials=4))
    assert found.plan.bits_per_weight <= 3 and found.measured is None
    assert any(
        note.startswith("nothing was measured: the plan goes by what other models taught") for note in found.plan.provenance["notes"]
    )
    assert found.predicted["full_precision"] == 1 and found.predicted["std"] > 0
    assert found.predicted["value"] <= found.uniform_predicted["value"]
    assert search_run(unprobed, Budget(bits=3.0), SearchConfig(trials=4)).plan == found.plan
    front = search_front(unprobed, SearchConfig(trials=4), bits=[2.5, 3.5])
    assert all("nothing was measured" in " ".join(one.plan.provenance["notes"]) for one in front)
    verified = search_run(unprobed, Budget(bits=3.0), SearchConfig(trials=4, verify=2))
    assert verified.measured is not None


@pytest.mark.usefixtures("prior")
def test_a_few_probes_correct_the_prior_and_enough_ask_for_a_fit(unprobed: Run, subject: str) -> None:
    probe(subject, unprobed.folder, n_configs=6, settings=SETTINGS)
    predictor = predictor_of(unprobed)
    assert predictor.notes[0].startswith("only 6 plans were measured") and predictor.full_precision != 1
    assert search_run(unprobed, Budget(bits=3.0), SearchConfig(trials=4)).plan.bits_per_weight <= 3
    probe(subject, unprobed.folder, n_configs=12, settings=SETTINGS)
    with pytest.raises(InputError, match="has no predictor; run `sedaq fit` first"):
        predictor_of(unprobed)


@pytest.mark.usefixtures("fast_fit")
def test_a_fit_says_where_it_has_what_it_knows_from_and_is_made_again_for_another_prior(run: Run, prior: LearntPrior) -> None:
    first = fit(run).summary
    assert first["sources"]["prior_of"] == f"corpus {prior.corpus}"
    assert fit(run).summary == first, "read back"
    learnt = load_predictor(run).table.priors.learnt
    assert learnt is not None and learnt.corpus == prior.corpus
    assert not any("itself" in note for note in first["notes"])
    replace(prior, models=["other", run.subject.name], corpus="another").save(use.personal_prior())
    assert "tiny itself is among the models that taught the prior; of a new model it knows less" in fit(run).summary["notes"]
    use.personal_prior().unlink()
    assert fit(run).summary["sources"]["prior_of"] == "gradient scores"


@pytest.mark.usefixtures("fast_fit")
def test_the_shipped_prior_makes_way_for_enough_probes_and_still_explains(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    shipped = fit_prior(synthetic_corpus(4, 8), settings=TreeSettings(n_trees=5))
    shipped.save(tmp_path / "shipped.json")
    monkeypatch.setattr(use, "SHIPPED_FILE", str(tmp_path / "shipped.json"))
    statistics = LayerStatistics(run)
    few, enough = (layer_table(run, statistics, n_probes=n).priors.learnt for n in (MIN_PROBES - 1, MIN_PROBES))
    assert few is not None and few.corpus == shipped.corpus and enough is None
    assert fit(run).summary["sources"]["prior_of"] == "gradient scores"
    assert load_predictor(run).table.priors.learnt is None and (run.folder / "predictor" / "properties.csv").exists()
    replace(shipped, corpus="taught").save(use.personal_prior())
    assert fit(run).summary["sources"]["prior_of"] == "corpus taught", "one's own is asked for, whatever the probes"


def test_a_prior_that_is_damaged_is_passed_over(prior: LearntPrior, caplog: pytest.LogCaptureFixture) -> None:
    use.personal_prior().write_text(use.personal_prior().read_text().replace('"level"', '"levels"'))
    assert known_prior() is None and "run `sedaq learn` again" in caplog.text
    with pytest.raises(DamagedError):
        LearntPrior.load(use.personal_prior())
    assert prior.models


@pytest.mark.usefixtures("prior")
def test_the_adaptive_design_first_asks_where_the_prior_is_unsure(unprobed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "START", 8)
    with Measurer(Prober(unprobed), "serial") as measurer:
        design = Adaptive(unprobed, measurer, 8)
        proposed = design._unsure(4)
        assert 1 <= len(proposed) <= 4
        sum(design.measure())
    asked = [{name: str(format) for name, format in plan.items()} for plan in proposed]
    assert [record["layers"] for record in design.records[: len(asked)]] == asked
    stratified = design_plans("stratified", unprobed.subject.layers, unprobed.menus, n_plans=8, seed=0)
    assert design.records[len(asked)]["layers"] == {name: str(format) for name, format in stratified[0].items()}


@pytest.mark.usefixtures("prior")
@pytest.mark.parametrize("metric", ["fid", "psnr"])
def test_the_adaptive_design_with_a_prior_measures_no_plan_twice_and_goes_by_any_metric(
    unprobed: Run, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psnr is held against full precision, which half as many uniform plans do not reach."""
    for name, value in {"START": 9, "ROUND": 4, "STRATIFIED": 1, "MIN_PLANS": 12, "N_POOL": 24}.items():
        monkeypatch.setattr(adaptive, name, value)
    with Measurer(Prober(unprobed), "serial") as measurer:
        design = Adaptive(unprobed, measurer, 16, metric)
        new = list(design.measure())
    assert new[:9] == [1] * 9 and 12 <= sum(new) == design.outcome.n_plans <= 16 and design.rankings


def test_layers_have_the_line_of_their_entries(prior: LearntPrior) -> None:
    entries = synthetic_corpus(1, 6, first=50)
    from sedaq.models.layers import Layer

    layers = [Layer(name, "", "", "linear", (4, 4)) for name in dict.fromkeys(entries["layer"])]
    found = layers_of(prior, entries, [*layers, Layer("as it is", "", "", "linear", (4, 4))])
    own = prior.predict(entries).mean[entries["layer"] == layers[2].name]
    assert found.log_slopes[2] == pytest.approx(own.mean())
    errors = entries["output_error"][entries["layer"] == layers[2].name]
    assert found.exponents[2] == pytest.approx(np.clip(np.polyfit(errors, own, 1)[0], 0.3, 4))
    assert found.log_slopes[-1] == found.log_slopes[:-1].min() and np.isfinite(found.widths).all() and found.level == prior.level
