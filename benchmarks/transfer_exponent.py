"""How strongly the additive model should believe in the exponent q of gradient scores: what several beliefs make of few probes, over the corpus' models."""

from __future__ import annotations

import numpy as np
from predictor_parts import constants
from transfer_models import Measured, by_score
from transfer_statistics import Judged, Key, Said

from sedaq.progress import track
from sedaq.sensitivity.predictor import additive
from sedaq.sensitivity.predictor.additive import fit_additive
from sedaq.sensitivity.predictor.ridge import choose_ridge
from sedaq.sensitivity.probing.probes import Probes

N_PROBES = (6, 12, 36)
SCORES = "sum of the scores, no probe"
BELIEFS: dict[str, tuple[float, float]] = {  # what q is thought to be, and one over the variance of that
    "q free": (0.5, 0.0),
    **{f"q = {q:g} ± {deviation:g}": (q, deviation**-2) for q in (0.6, 0.8, 1.0) for deviation in (2.0, 1.0, 0.5)},
}


def believing(probes: Probes, plans: Probes, q: float, certainty: float) -> Said:
    """What the additive model of the probes says of plans, without any learnt prior and without trees."""
    certainties = additive.CERTAINTY.copy()
    certainties[1] = certainty
    with constants(SCORE_FACTOR=q, CERTAINTY=certainties):
        ridge = choose_ridge(probes.errors, probes.labels, probes.table.priors, 0).ridge
        surrogate = fit_additive(probes.errors, probes.labels, probes.table.priors, ridge)
    excess = np.maximum(surrogate.excess(plans.errors), 1e-12)
    return Said(excess, np.log(excess / plans.full_precision))


def judged(one: Measured, n_probes: tuple[int, ...]) -> Judged:
    probes = one.taught(one.probes, None)
    said: dict[Key, Said] = {(SCORES, 0): by_score(None, one.unseen, 1.0)}
    for n in n_probes:
        for name, belief in BELIEFS.items():
            said[name, n] = believing(probes[np.arange(n)], one.unseen, *belief)
    unit, labels = one.unseen.full_precision, one.unseen.labels
    return Judged(one.name, labels.excess / unit, labels.se / unit, one.unseen.halves / unit, said)


def all_judged(names: list[str], n_probes: tuple[int, ...] = N_PROBES) -> list[Judged]:
    return [judged(Measured.of(name), n_probes) for name in track(names, "beliefs in scores")]


def comparisons(n_probes: tuple[int, ...] = N_PROBES) -> list[tuple[Key, Key]]:
    """Each belief against none."""
    free, *others = BELIEFS
    return [((name, n), (free, n)) for n in n_probes for name in others]
