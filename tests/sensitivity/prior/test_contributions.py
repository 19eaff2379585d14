"""What properties add to a prediction: exactly all of it, and by a law that is known."""

from __future__ import annotations

import numpy as np
import pytest

from sedaq.sensitivity.prior.contributions import N_BINS, REST, contributions, dependence, factors, interactions, sentences, summary
from sedaq.sensitivity.prior.fit import fit_members
from sedaq.sensitivity.prior.model import LearntPrior, TreeSettings
from sedaq.sensitivity.prior.properties import PROPERTIES

from .synthetic import synthetic_corpus

NAMES = [*PROPERTIES, REST]


@pytest.fixture(scope="module")
def prior() -> LearntPrior:
    settings = TreeSettings(n_trees=60, learning_rate=0.2, min_child_weight=2.0)
    members = fit_members(synthetic_corpus(8, 20, spread=0.1, level=0.2), settings, seed=0)
    return LearntPrior(members, settings, 0.3, 0.2, 1.0, ["a"], "0")


def test_contributions_are_all_of_the_prediction(prior: LearntPrior) -> None:
    table = synthetic_corpus(2, 10, first=50)
    table.loc[::3, "output_norm"] = np.nan
    table.loc[::5, ["gradient_score", "gain"]] = np.nan
    found = contributions(prior, table)
    assert found.shape == (5, len(table), len(NAMES))
    np.testing.assert_allclose(found.sum(2), prior.predict_members(table), atol=2e-5)


def test_the_law_is_told_by_property(prior: LearntPrior) -> None:
    """Layers that see the image do three times as much, those of role output twice, whatever else they are."""
    table = synthetic_corpus(6, 20, first=50)
    mean = contributions(prior, table).mean(0)
    image = mean[:, NAMES.index("sees_image")]
    sees = (table["sees_image"] == 1).to_numpy()
    assert 1.7 < np.exp(image[sees].mean() - image[~sees].mean()) < 3.5
    role, last = mean[:, NAMES.index("role")], (table["role"] == "output").to_numpy()
    assert 1.3 < np.exp(role[last].mean() - role[~last].mean()) < 2.5
    told = summary(prior, table).set_index("property")
    assert set(told.index[:2]) == {"output_error", "gradient_score"} and "sees_image" in told.index[:5]
    assert told.loc["sees_image", "direction"] > 0.7 and told.loc["output_error", "direction"] > 0.99
    assert told.loc["role", "names"].startswith("output ×") and np.isnan(told.loc["role", "direction"])
    assert (told["low"] <= told["size"]).all() and (told["size"] <= told["high"]).all()


def test_factors_of_a_layer_multiply_to_its_harm(prior: LearntPrior) -> None:
    table = synthetic_corpus(1, 12, first=60)
    found = factors(prior, table)
    assert len(found) == len(table) * len(PROPERTIES)
    product = found.groupby(["layer", "rate"])["factor"].prod()
    harm = found.groupby(["layer", "rate"])["harm"].first()
    assert product.to_numpy() == pytest.approx(harm.to_numpy(), rel=0.1), "but for the mean over members, which is of logarithms"
    logs = np.log(harm.unstack())
    np.testing.assert_allclose(logs.mean(0), 0, atol=1e-6, err_msg="the mean layer of each rate does 1")
    assert (found["low"] <= found["factor"]).all() and (found["factor"] <= found["high"]).all()


def test_sentences_name_what_raises_the_harm(prior: LearntPrior) -> None:
    table = synthetic_corpus(1, 12, first=60).assign(gain=0.0)
    table["gradient_score"] = table["output_error"]
    said = sentences(prior, table, 12)
    assert len(said) == 12
    sees = set(table["layer"][table["sees_image"] == 1])
    assert {line.partition(":")[0] for line in said if "sees the image ×" in line} == sees
    assert all("times the typical layer, because: " in line for line in said if line.partition(":")[0] in sees)


def test_properties_that_work_together_are_told() -> None:
    """Depth matters for layers that see the time alone."""
    table = synthetic_corpus(5, 16, spread=0.05, level=0.1)
    rng = np.random.default_rng(0)
    layer = table.groupby(["model", "layer"], sort=False).ngroup().to_numpy()
    time, deep = rng.integers(0, 2, layer.max() + 1)[layer], rng.integers(0, 2, layer.max() + 1)[layer]
    effects = {name: table[name] * np.exp(1.5 * time * deep) for name in ("effect", "half_1", "half_2")}
    clash = table.assign(sees_time=time.astype(float), depth=deep.astype(float), **effects)
    members = fit_members(clash, TreeSettings(n_trees=40, learning_rate=0.3, min_child_weight=2.0), seed=0, n_members=1)
    found = interactions(LearntPrior(members, TreeSettings(), 0.3, 0.2, 1.0, ["a"], "0"), clash)
    assert set(found.loc[0, ["property", "other"]]) == {"depth", "sees_time"}
    assert found["interaction"][0] > 1.2 * found["interaction"][1] and found["interaction"].is_monotonic_decreasing


def test_the_dependence_is_that_of_the_law(prior: LearntPrior) -> None:
    table = synthetic_corpus(6, 20, first=50)
    table.loc[::4, "output_norm"] = np.nan
    found = dependence(prior, table)
    assert (found["low"] <= found["factor"]).all() and (found["factor"] <= found["high"]).all()
    by_property = dict(list(found.groupby("property")))
    image = by_property["sees_image"]
    assert list(image["value"]) == [0, 1] and 1.7 < image["factor"].iloc[1] / image["factor"].iloc[0] < 3.5
    role = by_property["role"].set_index("value")["factor"].astype(float)
    assert role.idxmax() == "output" and set(role.index) == set(table["role"])
    error = by_property["output_error"]
    assert len(error) == N_BINS and error["factor"].is_monotonic_increasing and error["n_rows"].max() - error["n_rows"].min() <= 2
    assert by_property["output_norm"]["n_rows"].sum() == table["output_norm"].notna().sum(), "what is not known is in no bin"
    for name, rows in by_property.items():
        if table[name].notna().all():
            assert np.average(np.log(rows["factor"]), weights=rows["n_rows"]) == pytest.approx(0, abs=1e-5), "the mean row does 1"
