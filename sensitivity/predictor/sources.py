"""How much of a prediction comes from the prior, from a run's own probes, and from interactions between layers."""

from __future__ import annotations

import numpy as np

from ..probing.probes import Probes
from .additive import fit_common
from .layer_priors import Array
from .ridge import FOLDS

GRADIENTS = "gradient scores"  # what the prior is of, where nothing was learnt


def sources(probes: Probes, by_additive: Array, by_all: Array, seed: int) -> dict[str, float | str]:
    """Shares of the variation of log(excess + floor) over the probes, each predicted without itself; together with `unexplained` they are 1.

    prior: by the layers' priors, with the few numbers that all layers share fitted to the other probes. probes: what the additive model gains by letting
    layers deviate. interactions: what trees add to it. A part that does harm is below zero. prior_of: the corpus that the prior was learnt from.

    Args:
        by_additive, by_all: (probes,) values that the additive model and the whole predictor say of each probe without having seen it.
    """
    labels, learnt = probes.labels, probes.table.priors.learnt
    by_prior = np.empty(len(probes))
    fold = np.random.default_rng([seed, 5]).permutation(len(probes)) % FOLDS
    for k in range(FOLDS):
        rows = fold != k
        surrogate = fit_common(probes.errors[rows], labels[rows], probes.table.priors)
        by_prior[~rows] = probes.full_precision + surrogate.excess(probes.errors[~rows])
    mean = np.average(labels.target, weights=labels.weights)
    whole = max(float(labels.weights @ (labels.target - mean) ** 2), 1e-300)

    def explained(values: Array) -> float:
        logs = np.log(np.maximum(values - probes.full_precision + labels.floor, labels.floor / 3))
        return 1 - float(labels.weights @ (labels.target - logs) ** 2) / whole

    prior, additive, everything = (explained(values) for values in (by_prior, by_additive, by_all))
    parts = {"prior": prior, "probes": additive - prior, "interactions": everything - additive, "unexplained": 1 - everything}
    return {**parts, "prior_of": GRADIENTS if learnt is None else f"corpus {learnt.corpus}"}
