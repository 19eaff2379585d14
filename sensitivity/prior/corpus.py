"""What was measured of layers, over all models that were measured: a table with a row for every layer and entry of its menu, in a Parquet file.

Effects are excesses of a metric above full precision's on the same noise: what the additive model of all plans that a run measured says of one layer alone,
with its bootstrap's standard errors. Layers that were measured alone are such plans, too. By themselves they would teach little: of a Fréchet distance from
hundreds of images, one layer's part is mostly below the noise.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import DamagedError, InputError
from ...remote import pull
from ...storage import check_regular, write_atomically
from ..metrics.registry import DEFAULT
from ..predictor.additive import Labels, fit_additive, fit_samples
from ..predictor.ridge import choose_ridge
from ..probing.layer_statistics import LayerStatistics
from ..probing.probes import MIN_PROBES, Probes, read_probes
from ..run import PROBE, Run, probe_journal
from .entries import KNOWN, known_entries
from .properties import PROPERTIES

KIND, SCHEMA = "corpus", 1
MARK = "PAR1"  # that a Parquet file begins with
N_DRAWS = 16  # bootstrap samples of the probes behind an additive model's standard errors
NUMBERS = ("rate", "error", "score", "effect", "se", "half_1", "half_2", "full_precision", "n_images", "n_plans")
COLUMNS = (
    "model",  # name, and for another model of the same name some digits of its fingerprint
    "fingerprint",  # of the model; what has the same one is never split between folds
    *KNOWN,
    "effect",  # excess of the metric over full precision's, of this layer alone in this format
    "se",
    "half_1",  # the effect from disjoint halves of the images
    "half_2",
    "full_precision",  # the metric of full precision, lower is better
    "metric",
    "n_images",
    "n_plans",
    *PROPERTIES,
)
_WHERE = "run `sedaq learn` on the runs again, or choose another `corpus`"


# -- a run's rows ------------------------------------------------------------------------------------------------------------------------


def rows_of(run: Run, metric: str = DEFAULT) -> pd.DataFrame:
    """The rows that a run adds to a corpus: COLUMNS. Whatever it measured of plans that were not tuned counts, each plan by its largest measurement.

    Raises:
        InputError: for a run with too few plans.
    """
    statistics = LayerStatistics(run)
    records = [r for r in probe_journal(run.folder).read() if r["steps"] == run.settings.steps and not r.get("tuned_steps")]
    n_plans = len({r["plan_hash"] for r in records})
    if n_plans < MIN_PROBES:
        raise InputError(
            f"{run.folder}: holds {n_plans} measured plans, a corpus needs {MIN_PROBES}; run `sedaq probe` with more `configs`"
        )
    known, _ = known_entries(run, statistics)
    probes = read_probes(run, metric, statistics=statistics, others=[r for r in records if r["purpose"] != PROBE])
    if not probes.full_precision > 0:
        raise InputError(f"{run.folder}: {metric} of full precision is {probes.full_precision:g}; effects are relative to it, choose fid")
    images = {r["plan_hash"]: r["n_images"] for r in sorted(records, key=lambda r: int(r["n_images"]))}
    effects = _effects(probes, known, run.settings.seed)
    table = known.assign(
        **{name: effects[name] for name in effects},
        model=run.subject.name,
        fingerprint=run.subject.model_fingerprint,
        full_precision=probes.full_precision,
        metric=metric,
        n_images=float(max(images[h] for h in probes.hashes)),
        n_plans=float(len(probes)),
    )
    return table[list(COLUMNS)].reset_index(drop=True)


def _effects(probes: Probes, known: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Effects of all rows of `known`, by the additive model of the probes, of bootstrap samples of them, and of each half of their images.

    Nothing that was learnt enters, or a prior would be taught by itself.
    """
    priors = replace(probes.table.priors, learnt=None)
    ridge = choose_ridge(probes.errors, probes.labels, priors, seed).ridge
    rng = np.random.default_rng([seed, 2])
    samples = [np.arange(len(probes)), *(rng.integers(len(probes), size=len(probes)) for _ in range(N_DRAWS))]
    surrogates = list(fit_samples(probes.errors, probes.labels, priors, ridge, samples))
    for half in probes.halves.T:
        labels = Labels(half, probes.labels.se * 2**0.5, probes.full_precision, probes.labels.floor)
        surrogates.append(fit_additive(probes.errors, labels, priors, ridge))
    layers = [probes.table.names.index(name) for name in known["layer"]]
    alone = np.zeros((len(known), len(probes.table.names)))
    alone[np.arange(len(known)), layers] = known["error"]
    effects = np.array([surrogate.excess(alone) for surrogate in surrogates])
    columns = {"effect": effects[0], "se": effects[1:-2].std(0, ddof=1), "half_1": effects[-2], "half_2": effects[-1]}
    return pd.DataFrame(columns, index=known.index)


# -- tables of several models ------------------------------------------------------------------------------------------------------------


def merged(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table; of a model and metric that several have, the rows of the last one. Models of equal names are told apart."""
    newest: dict[tuple[str, str], pd.DataFrame] = {}
    for table in tables:
        for key, rows in table.groupby(["fingerprint", "metric"], sort=False):
            newest[str(key[0]), str(key[1])] = rows  # type: ignore[index]
    whole = pd.concat(list(newest.values()), ignore_index=True)[list(COLUMNS)]
    plain = whole["model"].str.replace(r" \([0-9a-f]{4}\)$", "", regex=True)
    shared = plain.map(whole.assign(model=plain).groupby("model")["fingerprint"].nunique()) > 1
    return whole.assign(model=plain.where(~shared, plain + " (" + whole["fingerprint"].str[:4] + ")"))


def check(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table with its columns in order. Raises InputError, which names `where` and the column, for one that is no corpus."""
    for name in COLUMNS:
        if name not in table:
            raise InputError(f"{where}: column '{name}' is missing; {_WHERE}")
    for name in table:
        if name not in COLUMNS:
            raise InputError(f"{where}: column {name!r} is not one of a corpus; {_WHERE}")
    if not len(table):
        raise InputError(f"{where}: holds no row; {_WHERE}")
    texts = {name for name, one in PROPERTIES.items() if one.names} | {*COLUMNS} - {*NUMBERS, *PROPERTIES}
    for name in COLUMNS:
        if (name in texts) == pd.api.types.is_numeric_dtype(table[name]):
            raise InputError(f"{where}: column '{name}' must hold {'texts' if name in texts else 'numbers'}; {_WHERE}")
    for name in NUMBERS:
        bad = ~np.isfinite(table[name].to_numpy(float))
        if bad.any():
            raise InputError(f"{where}: column '{name}' is not finite in row {int(bad.argmax())}; {_WHERE}")
    for name, fits in (("error", table["error"] > 0), ("se", table["se"] >= 0), ("full_precision", table["full_precision"] > 0)):
        if not fits.all():
            raise InputError(
                f"{where}: column '{name}' is {table[name][~fits].iloc[0]:g} in row {int((~fits).to_numpy().argmax())}; {_WHERE}"
            )
    return table[list(COLUMNS)]


def corpus_fingerprint(table: pd.DataFrame) -> str:
    """First 16 hex digits of a sha256 over all that the table holds."""
    return hashlib.sha256(table.to_csv(index=False, float_format="%.17g").encode()).hexdigest()[:16]


def write_corpus(path: Path, table: pd.DataFrame) -> None:
    """A Parquet file with the schema and the fingerprint in its metadata, whole or not at all."""
    table = check(table, str(path)).reset_index(drop=True)
    table.attrs = {"sedaq": {"kind": KIND, "schema": SCHEMA, "fingerprint": corpus_fingerprint(table)}}
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def read_corpus(path: Path) -> pd.DataFrame:
    """Raises InputError for a file that is missing, DamagedError for one that is damaged, no corpus, or of an older schema."""
    if not pull(path):
        raise InputError(f"`corpus` {path}: is not there; make it by `sedaq learn`")
    try:
        check_regular(path)
        table = pd.read_parquet(path)
    except OSError as error:
        raise InputError(f"`corpus` {path}: cannot be read ({error.strerror or error}); check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"`corpus` {path}: not a whole Parquet file ({str(error).splitlines()[0]}); {_WHERE}") from error
    header = table.attrs.get("sedaq")
    expected: dict[str, Any] = {"kind": KIND, "schema": SCHEMA}
    for field, value in expected.items():
        known = header.get(field) if isinstance(header, dict) else None
        if known != value:
            raise DamagedError(f"`corpus` {path}: field '{field}' is {known!r} where {value!r} is expected; {_WHERE}")
    table = check(table, f"`corpus` {path}")
    if corpus_fingerprint(table) != header["fingerprint"]:
        raise DamagedError(f"`corpus` {path}: field 'fingerprint' does not match its rows, the file was changed or damaged; {_WHERE}")
    table.attrs = {}
    return table
