"""The verb `learn`: add a user's own runs to a personal corpus, and learn the prior anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits

from ...outputs import check_out, csv_bytes
from ...progress import track
from ...runtime.tasks import locked
from ...storage import write_atomically
from ..metrics.registry import DEFAULT
from ..run import Run
from .contributions import dependence, interactions, summary
from .corpus import MARK, merged, read_corpus, rows_of, write_corpus
from .entries import personal_corpus
from .fit import MIN_MODELS, check_models, fit_prior
from .model import LearntPrior, TreeSettings
from .tuning import choose_settings
from .use import PRIOR_SUFFIX, known_prior

SHIPPED_CORPUS = "corpus.parquet"
# What lies beside a corpus: a suffix, and what such files have near their beginning.
BESIDE = {
    ".prior.json": '"kind": "prior"',
    ".study.jsonl": "op_code",
    ".properties.csv": "property,size",
    ".interactions.csv": "property,other",
    ".dependence.csv": "property,value",
    **{f".{figure}{suffix}": mark for figure in ("summary", "dependence") for suffix, mark in ((".svg", "<svg"), (".png", "PNG"))},
}


@dataclass(frozen=True)
class LearnResult:
    """What the runs added, and what the prior is worth on models that it has not seen."""

    models: tuple[str, ...]  # of the corpus now
    added: tuple[str, ...]  # models of the runs
    n_rows: int
    before: Mapping[str, Any] | None  # quality without the runs, each model predicted by the others; None where there were too few
    after: Mapping[str, Any]
    corpus: Path  # the user's own
    prior: Path

    def to_dict(self) -> dict[str, Any]:
        """What the verb `learn` prints as JSON."""
        return {
            "models": list(self.models),
            "added": list(self.added),
            "n_rows": self.n_rows,
            "before": None if self.before is None else dict(self.before),
            "after": dict(self.after),
            "corpus": str(self.corpus),
            "prior": str(self.prior),
        }


def shipped_corpus() -> pd.DataFrame | None:
    """What sedaq itself measured, if it is there."""
    path = files(__package__).joinpath(SHIPPED_CORPUS)
    return read_corpus(Path(str(path))) if path.is_file() else None


def whole_corpus(path: Path) -> pd.DataFrame:
    """A user's corpus with what sedaq ships: the rows that the prior beside it was learnt from."""
    shipped = shipped_corpus()
    return merged([*([] if shipped is None else [shipped]), read_corpus(path)])


def learn(runs: Sequence[Any], corpus: str | Path | None = None, *, metric: str = DEFAULT, trials: int = 0, seed: int = 0) -> LearnResult:
    """Add runs to a corpus and learn from it, and from what sedaq ships, what makes layers sensitive. Runs that are probed later start from that.

    The corpus and, beside it, the prior and what it says of properties are written when all is known.

    Args:
        runs: folders, or runs that are open; of two models or more, with those that are in the corpus.
        corpus: a Parquet file; the user's own in the cache by default, which is where runs look for what was learnt.
        metric: whose effects are added, any metric that the runs have.
        trials: of Optuna, which chooses how trees are grown; 0 keeps the settings of the prior before.

    Raises:
        InputError: for a run that measured too little, a file that is no corpus, and one model only.

    Example:
        >>> learn(["runs/dit", "runs/unet"]).after["spearman"]  # doctest: +SKIP
    """
    path = Path(corpus) if corpus else personal_corpus()
    check_out("corpus", path, MARK)
    for suffix, mark in BESIDE.items():
        check_out("corpus", path.with_suffix(suffix), mark)
    prior_path = path.with_suffix(PRIOR_SUFFIX)
    with locked(path), threadpool_limits(1):
        own = [read_corpus(path)] if path.exists() else []
        new = [rows_of(_opened(run), metric) for run in track(runs, "rows of runs")]
        shipped = shipped_corpus()
        base = [*([] if shipped is None else [shipped]), *own]
        earlier, table = merged(base) if base else None, merged([*base, *new])
        check_models(table, str(path))
        settings = _settings(table, path, trials, seed)
        before = None
        if earlier is not None and earlier["fingerprint"].nunique() >= MIN_MODELS:
            before = fit_prior(earlier, settings=settings, seed=seed).quality
        prior = fit_prior(table, settings=settings, seed=seed)
        write_corpus(path, merged([*own, *new]))
        prior.save(prior_path)
        write_atomically(path.with_suffix(".properties.csv"), csv_bytes(summary(prior, table)))
        write_atomically(path.with_suffix(".interactions.csv"), csv_bytes(interactions(prior, table)))
        write_atomically(path.with_suffix(".dependence.csv"), csv_bytes(dependence(prior, table)))
    added = tuple(dict.fromkeys(rows["model"].iloc[0] for rows in new))
    return LearnResult(tuple(prior.models), added, len(table), before, prior.quality, path, prior_path)


def _opened(run: Any) -> Run:
    return run if isinstance(run, Run) else Run.open(getattr(run, "folder", run))


def _settings(table: pd.DataFrame, path: Path, n_trials: int, seed: int) -> TreeSettings:
    if n_trials:
        return choose_settings(table, path.with_suffix(".study.jsonl"), n_trials=n_trials, seed=seed)
    own = path.with_suffix(PRIOR_SUFFIX)
    known = LearntPrior.load(own) if own.exists() else known_prior()
    return TreeSettings() if known is None else known.settings
