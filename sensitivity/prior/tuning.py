"""How the prior's trees are grown, chosen by Optuna on models left out; the study is kept beside the corpus."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
from optuna.storages.journal import JournalFileBackend

from ...errors import InputError
from ...outputs import refuse_links
from ...progress import track
from ...remote import push
from .corpus import corpus_fingerprint
from .fit import check_models, leave_one_out
from .model import TreeSettings

N_TRIALS = 40


def choose_settings(
    table: pd.DataFrame, study: Path, *, n_trials: int = N_TRIALS, seed: int = 0, where: str = "the corpus"
) -> TreeSettings:
    """The settings of least loss on models left out, none of whose rows any fit saw; no trees at all are a choice.

    Args:
        study: a journal of Optuna, which may hold studies of earlier corpora too. Trials that it holds of this corpus are not made again.

    Raises:
        InputError: for a corpus of one model, and a study that cannot be read.
    """
    check_models(table, where)
    study.parent.mkdir(parents=True, exist_ok=True)
    refuse_links(study.parent)
    with _quiet():
        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(study)))
            known = optuna.create_study(storage=storage, study_name=f"prior {corpus_fingerprint(table)} {seed}", load_if_exists=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{study}: not a study of Optuna ({str(error).partition(chr(10))[0]}); move it away") from error
        if not known.trials:
            known.enqueue_trial(_as_parameters(TreeSettings()))

        def loss(trial: optuna.Trial) -> float:
            return leave_one_out(table, _asked(trial), seed=seed, n_members=1).loss

        done = sum(trial.state.is_finished() for trial in known.trials)
        for number in track(range(done, n_trials), "settings of the prior", n_trials, done=done):
            known.sampler = optuna.samplers.TPESampler(
                seed=seed + number
            )  # so that a study which was cut off goes on as if it had not been
            known.optimize(loss, n_trials=1)
    push(study)
    return TreeSettings(**known.best_params)


def _asked(trial: optuna.Trial) -> TreeSettings:
    """Ranges within which a prior's file stays small."""
    return TreeSettings(
        n_trees=trial.suggest_int("n_trees", 0, 80, step=10),
        max_depth=trial.suggest_int("max_depth", 1, 3),
        learning_rate=trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
        subsample=trial.suggest_float("subsample", 0.5, 1.0),
        colsample_bytree=trial.suggest_float("colsample_bytree", 0.2, 1.0),
        reg_lambda=trial.suggest_float("reg_lambda", 1.0, 100.0, log=True),
        min_child_weight=trial.suggest_float("min_child_weight", 1.0, 50.0, log=True),
    )


def _as_parameters(settings: TreeSettings) -> dict[str, int | float]:
    return dict(vars(settings))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
