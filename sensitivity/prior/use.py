"""From a learnt prior to what the additive model knows of one run's layers."""

from __future__ import annotations

import logging
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import DamagedError, InputError, UntrustedError
from ...models.layers import Layer
from ..predictor.layer_priors import LearntLayers
from ..probing.layer_statistics import LayerStatistics
from ..run import Run
from .entries import known_entries, personal_corpus
from .model import LearntPrior

log = logging.getLogger("sedaq")

SHIPPED_FILE, PRIOR_SUFFIX = "prior.json", ".prior.json"  # beside this file, where sedaq ships a prior; beside a corpus
USUAL_EXPONENT, EXPONENT_WIDTH = 1.5, 0.2  # of layers with one entry; standard deviation of the logarithm
EXPONENTS = (0.3, 4.0)


def personal_prior() -> Path:
    """Where what a user's own runs taught is kept."""
    return personal_corpus().with_suffix(PRIOR_SUFFIX)


def load_prior(path: Path) -> LearntPrior:
    """A prior's file, or the one that lies beside a corpus.

    Raises:
        InputError: there is none. DamagedError: it is damaged, or no prior.
    """
    path = path if path.suffix == ".json" else path.with_suffix(PRIOR_SUFFIX)
    if not path.is_file():
        raise InputError(f"`prior` {path}: is not there; make it by `sedaq learn`")
    return LearntPrior.load(path)


def prior_of(run: Run, *, shipped: bool = True) -> LearntPrior | None:
    """The one that a run was told, else the one that is known; `shipped`: the one that sedaq ships counts, too."""
    return run.prior or known_prior(shipped=shipped)


def known_prior(*, shipped: bool = True) -> LearntPrior | None:
    """The user's own, else the one that sedaq ships, else none. One that is damaged is passed over with a warning."""
    path = personal_prior()
    if path.exists():
        try:
            return LearntPrior.load(path)
        except DamagedError as error:
            log.warning("%s", error)
    own = files(__package__).joinpath(SHIPPED_FILE)
    return LearntPrior.load(Path(str(own))) if shipped and own.is_file() else None


def seen_before(run: Run) -> list[str]:
    """A note where the run's own model is one of those that a prior was learnt from."""
    prior = prior_of(run)
    known = prior is not None and run.subject.name in prior.models
    return [f"{run.subject.name} itself is among the models that taught the prior; of a new model it knows less"] if known else []


def explaining_prior(run: Run, statistics: LayerStatistics) -> tuple[LearntPrior, pd.DataFrame] | None:
    """A prior and the entries of a run's layers, which it speaks of; None where there is none, or the run's model may not be loaded to be looked at."""
    prior = prior_of(run)
    if prior is None:
        return None
    try:
        return prior, known_entries(run, statistics)[0]
    except UntrustedError as error:
        log.warning("what other models taught is left out: %s", error)
        return None


def learnt_layers(run: Run, statistics: LayerStatistics, *, shipped: bool = True) -> LearntLayers | None:
    """What a prior says of a run's layers; None where there is none to ask. `shipped`: the one that sedaq ships counts, too."""
    if prior_of(run, shipped=shipped) is None:
        return None
    found = explaining_prior(run, statistics)
    return None if found is None else layers_of(*found, run.subject.layers)


def layers_of(prior: LearntPrior, entries: pd.DataFrame, layers: list[Layer]) -> LearntLayers:
    """The prior's predictions of every entry as a line in the log error for each layer.

    Layers without an entry that has an error, as where all of a menu is left as it is, get the least slope of the others: nothing depends on it.
    """
    predicted = prior.predict(entries)
    log_errors, names = np.log(entries["error"].to_numpy(float)), entries["layer"].to_numpy(object)
    slopes, exponents, widths = (np.full(len(layers), np.nan) for _ in range(3))
    for index, layer in enumerate(layers):
        own = names == layer.name
        if not own.any():
            continue
        x, y = log_errors[own] - log_errors[own].mean(), predicted.mean[own]
        slopes[index], widths[index] = y.mean(), predicted.width[own].mean()
        exponents[index] = x @ y / (x @ x) if x @ x > 0 else USUAL_EXPONENT
    known = np.isfinite(slopes)
    return LearntLayers(
        np.where(known, slopes, slopes[known].min()),
        np.clip(np.where(known, exponents, USUAL_EXPONENT), *EXPONENTS),
        np.where(known, widths, widths[known].mean()),
        EXPONENT_WIDTH,
        prior.level,
        prior.corpus,
    )
