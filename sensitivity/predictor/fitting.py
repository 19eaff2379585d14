"""The verb `fit`: read a run's probes, fit the predictor, cross-validate it beside simpler ones, and explain it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_limits

from ...aq.plans.menu import Entry
from ...errors import DamagedError, InputError
from ...outputs import csv_bytes
from ...runtime.owner import owner
from ...runtime.status import telling
from ...storage import file_sha256, fingerprint, read_json, write_atomically, write_json
from ..explanation.explanation import Explanation, additivity, group_rows, interaction_rows, layer_rows, stability
from ..explanation.findings import findings
from ..metrics.registry import DEFAULT, metric_of
from ..prior.contributions import factors, sentences
from ..prior.use import explaining_prior, prior_of, seen_before
from ..probing.layer_statistics import LayerStatistics
from ..probing.probes import Probes, read_probes
from ..run import PROBE, TUNED_PROBE, Run
from .additive import Array
from .cross_validation import ADDITIVE, OURS, cross_validate, interval, judge, learning_curve, noise_ceiling, spearman
from .predictor import PREDICTOR_FILE, Predictor
from .sources import sources

log = logging.getLogger("sedaq")


@dataclass(frozen=True)
class Fitted:
    predictor: Predictor
    summary: dict[str, Any]


@dataclass(frozen=True)
class FitResult:
    """A predictor's fit: how well it predicts, and what it says of the model."""

    metric: str
    spearman: float  # rank correlation of predictions and measurements, each probe predicted without itself
    spearman_ci: tuple[float, float]  # 95 %
    findings: tuple[str, ...]  # in words
    notes: tuple[str, ...]  # what a reader should know of the probes
    summary: Mapping[str, Any]  # all of fit.json
    folder: Path  # that holds the predictor and its tables

    @classmethod
    def of(cls, summary: Mapping[str, Any], folder: Path) -> FitResult:
        """From what fit.json holds."""
        found, notes = tuple(summary["findings"]), tuple(summary["notes"])
        return cls(summary["metric"], summary["spearman"], tuple(summary["spearman_ci"]), found, notes, summary, folder)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer and menu entry: sensitivity, interval, error, predicted change. It is sensitivity.csv."""
        return pd.read_csv(self.folder / "sensitivity.csv")

    def to_dict(self) -> dict[str, Any]:
        """What the verb `fit` prints as JSON."""
        return dict(self.summary)


def error_of(statistics: LayerStatistics) -> Callable[[str, Entry], float]:
    return lambda name, entry: statistics.of_entry(name, entry).error


def predictor_folder(run: Run, *, tuned: bool = False) -> Path:
    """Where a run's predictor lies, or that of tuned plans. Raises InputError for tuned plans of a run that was told a prior."""
    if tuned and run.prior is not None:
        raise InputError("`prior`: what other models taught is of plans that are not tuned; leave it out where `tuned` is given")
    return run.folder / ("predictor_tuned" if tuned else "predictor")


@telling("fit")
def fit(run: Run, *, metric: str = DEFAULT, tuned: bool = False, seed: int | None = None) -> Fitted:
    """Fit, cross-validate and explain; writes predictor/ (model, fit.json and tables) into the run. A fit of the same probes is read back.

    Args:
        tuned: by probes that were measured after tuning; writes predictor_tuned/.

    Tables: sensitivity.csv (layer × entry), groups.csv (role or block × rate), interactions.csv (pairs of layers); and where other models taught a prior
    properties.csv (layer × rate × property).

    Raises:
        InputError: for too few probes, labels that are all equal, and probes of mixed kinds or of another model.
    """
    seed = run.settings.seed if seed is None else seed
    statistics = LayerStatistics(run)
    probes = read_probes(run, metric, purpose=TUNED_PROBE if tuned else PROBE, statistics=statistics)
    folder = predictor_folder(run, tuned=tuned)
    identity = {
        "subject": run.subject.fingerprint,
        "probes": fingerprint([sorted(probes.hashes), probes.labels.excess.tolist(), metric, seed, *_taught_by(run, probes)]),
        **owner(run.folder),
    }
    found = _read_back(folder, identity, statistics)
    if found is not None:
        return found
    with threadpool_limits(1):  # matrices are small: threads that wait for each other take ten times as long on a busy machine
        predictor, tables, summary = _fit(run, statistics, probes, metric, seed)
    files = {name: csv_bytes(table) for name, table in tables.items()}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    summary = {"metric": metric, "probes": identity["probes"], **summary, "tables": hashes}
    _write(folder, predictor, identity, files, summary | owner(run.folder))
    return Fitted(predictor, summary)


def _fit(
    run: Run, statistics: LayerStatistics, probes: Probes, metric: str, seed: int
) -> tuple[Predictor, dict[str, pd.DataFrame], dict[str, Any]]:
    """The predictor, its tables by name, and what fit.json says of it."""
    predicted = cross_validate(probes, seed)
    predictor = Predictor.fit(metric, probes, error_of=error_of(statistics), seed=seed)
    explanation = Explanation.of(run, statistics, probes, predictor.ridge, seed)
    judged = _judged(probes, predicted, seed, sign=metric_of(metric).sign)
    explaining = None if probes.tuned_steps else explaining_prior(run, statistics)
    summary = {
        "n_probes": len(probes),
        "n_trees": predictor.n_trees,
        **({"tuned_steps": probes.tuned_steps} if probes.tuned_steps else {}),
        "notes": [*probes.notes, *_why_not(statistics), *(seen_before(run) if probes.table.priors.learnt else [])],
        **judged,
        "sources": sources(probes, predicted[ADDITIVE].mean(0), predicted[OURS].mean(0), seed),
        "learning_curve": learning_curve(probes, seed),
        "stability": stability(probes, explanation.errors[:, 0], predictor.ridge, seed),
        "additivity": additivity(explanation, predicted[OURS].mean(0)),
        "findings": findings(explanation, metric_of(metric).heading, judged["spearman_ci"]),
    }
    tables = {
        "sensitivity": layer_rows(run, statistics, explanation, predictor),
        "groups": group_rows(explanation),
        "interactions": interaction_rows(explanation, predictor),
    }
    if explaining is not None:
        tables["properties"] = factors(*explaining)
        summary["findings"] += sentences(*explaining)
    return predictor, tables, summary


def _taught_by(run: Run, probes: Probes) -> list[str]:
    """The corpus that a learnt prior is of; nothing without one, so that fits of earlier versions are read back."""
    prior = None if probes.tuned_steps else prior_of(run)
    return [] if prior is None else [prior.corpus]


def _why_not(statistics: LayerStatistics) -> list[str]:
    why = statistics.why_no_gradients
    return [f"no gradient score, layers' own errors stand in for it: {why}"] if why else []


def _judged(probes: Probes, predicted: dict[str, Array], seed: int, *, sign: int) -> dict[str, Any]:
    """Scores of all predictors out of fold, the ceiling, and every probe's mean prediction; `sign` turns values back to the metric's own."""
    scores = judge(predicted, probes.values, seed)
    mean = predicted[OURS].mean(0)
    return {
        "spearman": scores[OURS]["spearman"],
        "spearman_ci": interval(lambda rows: spearman(mean[rows], probes.values[rows]), len(probes), seed),
        "ceiling": noise_ceiling(probes.halves),
        "ceiling_ci": interval(lambda rows: noise_ceiling(probes.halves[rows]), len(probes), seed),
        "baselines": {name: score["spearman"] for name, score in scores.items() if name != OURS},
        "scores": scores,
        "predictions": [
            {"plan_hash": h, "bits_per_weight": float(b), "measured": sign * float(m), "predicted": sign * float(p)}
            for h, b, m, p in zip(probes.hashes, probes.bits, probes.values, mean, strict=True)
        ],
    }


def _write(folder: Path, predictor: Predictor, identity: dict[str, Any], tables: dict[str, bytes], summary: dict[str, Any]) -> None:
    """fit.json last: with it the fit is whole."""
    predictor.save(folder, identity)
    if "properties" not in tables:
        (folder / "properties.csv").unlink(missing_ok=True)  # of a fit with another prior
    for name, table in tables.items():
        write_atomically(folder / f"{name}.csv", table)
    write_json(folder / "fit.json", "fit", summary)


def _read_back(folder: Path, identity: dict[str, Any], statistics: LayerStatistics) -> Fitted | None:
    """An earlier fit of the same probes; None where there is none, or one of its files is missing, damaged or of another fit."""
    own = owner(folder.parent)
    try:
        if not (folder / "fit.json").exists() or not (folder / PREDICTOR_FILE).exists():
            return None
        summary = read_json(folder / "fit.json", "fit", owner=own)
        summary.pop("run", None)
        if summary["probes"] != identity["probes"]:
            return None
        predictor, found = Predictor.load(folder, error_of(statistics), own)
        same = all(found[name] == identity[name] for name in ("subject", "probes"))
        tables = summary.get("tables", {})
        whole = bool(tables) and all(file_sha256(folder / f"{name}.csv") == sha256 for name, sha256 in tables.items())
        return Fitted(predictor, summary) if same and whole else None
    except (DamagedError, OSError) as error:
        log.warning("%s: an earlier fit is not whole (%s); the predictor is fitted again", folder, error)
        return None


def load_predictor(run: Run, *, tuned: bool = False) -> Predictor:
    """What `fit` wrote. Raises InputError where there is none, or it is of another model, or of another prior than the run was told."""
    folder = predictor_folder(run, tuned=tuned)
    if not (folder / PREDICTOR_FILE).exists():
        remedy = "run `sedaq probe` with `tuned_steps`, and `sedaq fit` for tuned plans" if tuned else "run `sedaq fit` first"
        raise InputError(f"{run.folder}: has no predictor{' of tuned plans' if tuned else ''}; {remedy}")
    predictor, identity = Predictor.load(folder, error_of(LayerStatistics(run)), owner(run.folder))
    if identity["subject"] != run.subject.fingerprint or predictor.layers != [layer.name for layer in run.subject.layers]:
        raise InputError(
            f"{folder / PREDICTOR_FILE}: field 'subject' is {identity['subject']}, the run's is {run.subject.fingerprint}; run `sedaq fit` again"
        )
    learnt = predictor.table.priors.learnt
    if run.prior is not None and (learnt is None or learnt.corpus != run.prior.corpus):
        raise InputError(f"{folder / PREDICTOR_FILE}: was fitted with another prior; run `sedaq fit` with this `prior`, or leave it out")
    return predictor
