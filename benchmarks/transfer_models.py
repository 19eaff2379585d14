"""The corpus' models with all that was measured of them, and what predictors say of their unseen plans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from corpus import Sizes, layers_alone
from corpus_models import MODELS, folder_of, subject_argument
from transfer_statistics import Judged, Key, Said

from sedaq.progress import track
from sedaq.sensitivity.metrics.registry import DEFAULT
from sedaq.sensitivity.predictor.cross_validation import PREDICTORS
from sedaq.sensitivity.predictor.fitting import error_of
from sedaq.sensitivity.predictor.predictor import Predictor
from sedaq.sensitivity.prior.corpus import merged, rows_of
from sedaq.sensitivity.prior.entries import known_entries
from sedaq.sensitivity.prior.model import LearntPrior
from sedaq.sensitivity.prior.use import layers_of
from sedaq.sensitivity.probing.layer_statistics import LayerStatistics
from sedaq.sensitivity.probing.probes import Probes, read_probes
from sedaq.sensitivity.run import Run, probe_journal

N_PROBES = (0, 6, 12, 36)
LEARNT, TODAY, SCORE = "learnt prior", "gradient prior", "gradient score alone"
_TINY = 1e-12


@dataclass(frozen=True)
class Measured:
    """A model's run: menu entries with their properties, its probes in the order in which they were asked for, and plans that no fit sees."""

    name: str
    run: Run
    statistics: LayerStatistics
    entries: pd.DataFrame
    probes: Probes
    unseen: Probes

    @classmethod
    def of(cls, name: str) -> Measured:
        run = open_run(name)
        statistics = LayerStatistics(run)
        entries, _ = known_entries(run, statistics)
        probes, unseen = (read_probes(run, purpose=purpose, statistics=statistics) for purpose in ("probe", "unseen"))
        return cls(name, run, statistics, entries, probes, unseen)

    def taught(self, probes: Probes, prior: LearntPrior | None) -> Probes:
        """The probes with layers as a prior has them, and with nothing else that was learnt; None: as gradient scores have them."""
        learnt = None if prior is None else layers_of(prior, self.entries, self.run.subject.layers)
        return replace(probes, table=replace(probes.table, priors=replace(probes.table.priors, learnt=learnt)))

    def predictor(self, prior: LearntPrior | None, n_probes: int) -> Predictor:
        """By the first probes; without any, the prior alone, whose values are multiples of full precision's."""
        how = {"error_of": error_of(self.statistics), "seed": self.run.settings.seed}
        probes = self.taught(self.probes, prior)
        if n_probes == 0:
            return Predictor.of_prior(DEFAULT, probes.table, full_precision=1.0, **how)
        return Predictor.fit(DEFAULT, probes[np.arange(n_probes)], **how)


def open_run(name: str) -> Run:
    return Run.open(folder_of(name) / "run", subject=subject_argument(name))


def is_complete(name: str, sizes: Sizes) -> bool:
    """Whether a model's probes, unseen plans and layers alone are all measured."""
    folder = folder_of(name) / "run"
    if not (folder / "run.json").exists():
        return False
    purposes = [record["purpose"] for record in probe_journal(folder).read()]
    if (
        any(purposes.count(purpose) < n for purpose, n in (("probe", sizes.n_probes), ("unseen", sizes.n_unseen)))
        or "truth" not in purposes
    ):
        return False
    run = open_run(name)
    return purposes.count("truth") >= len(layers_alone(run, sizes))


def complete_models(*, is_test: bool, sizes: Sizes) -> list[str]:
    """Those of MODELS that are measured: the ones to learn from, or the test models."""
    return [name for name, model in MODELS.items() if model.is_test == is_test and is_complete(name, sizes)]


def corpus_of(names: list[str]) -> pd.DataFrame:
    """Rows of the models, by their names in MODELS. Raises AssertionError for a test model."""
    assert not any(MODELS[name].is_test for name in names), "test models never enter"
    return merged([rows_of(open_run(name)).assign(model=name) for name in track(names, "rows of runs")])


# -- what is said of unseen plans --------------------------------------------------------------------------------------------------------


def judged(one: Measured, prior: LearntPrior, n_probes: tuple[int, ...] = N_PROBES) -> Judged:
    """Predictors with a learnt prior and with that of gradient scores, each after several numbers of probes, and the gradient score alone.

    Args:
        prior: learnt from other models.
    """
    assert one.name not in prior.models, "it has seen this model"
    unit, labels = one.unseen.full_precision, one.unseen.labels
    return Judged(
        one.name, labels.excess / unit, labels.se / unit, one.unseen.halves / unit, dict(_predictions(one, prior, n_probes, unit))
    )


def _predictions(one: Measured, prior: LearntPrior, n_probes: tuple[int, ...], unit: float) -> Iterator[tuple[Key, Said]]:
    for n in n_probes:
        yield (LEARNT, n), said_by(one.predictor(prior, n), one.unseen, unit if n else 1.0)
        if n:
            yield (TODAY, n), said_by(one.predictor(None, n), one.unseen, unit)
        yield (SCORE, n), by_score(one.probes[np.arange(n)] if n else None, one.unseen, unit)


def said_by(predictor: Predictor, plans: Probes, unit: float) -> Said:
    """What a predictor says of plans. unit: full precision's distance, in the predictor's own."""
    members = predictor.predict_members(plans.errors, plans.rates)
    mean = members.mean(0)
    excess = np.maximum(np.exp(mean) - predictor.floor, _TINY * unit)
    spread = members.var(0, ddof=1) if len(members) > 1 else 0.0
    # The deviation is that of log(excess + floor).
    widths = np.sqrt(spread + predictor.residual**2) * (excess + predictor.floor) / excess
    return Said(mean, np.log(excess / unit), widths)


def by_score(probes: Probes | None, plans: Probes, unit: float) -> Said:
    """The sum of gradient scores: an order, to which probes give a size, but for those that leave all layers as they are, whose score has no logarithm."""
    order = plans.scores.sum(1)
    if probes is None:
        return Said(order)
    lowered = probes[np.flatnonzero(probes.scores.sum(1) > 0)]
    values = PREDICTORS["gradient score"](lowered, plans, 0)
    return Said(order, np.log(np.maximum(values - lowered.full_precision, _TINY * unit) / unit))
