"""The verb `fit`: read a run's probes, fit the predictor, cross-validate it beside simpler ones, and explain it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV

from ..aq.formats import Format
from ..aq.menu import Entry
from ..errors import InputError
from ..progress import track
from ..storage import fingerprint, read_json, read_records, write_atomically, write_json
from .predictor import Predictor, anchor, choose_ridge, fit_additive, transform
from .run import Run

LEAST_PROBES = 12
FOLDS, REPEATS = 5, 3
BOOTSTRAPS = 500


@dataclass(frozen=True)
class Probes:
    """A run's probes as arrays; layers in the run's order."""

    hashes: list[str]
    errors: np.ndarray  # (probes, layers)
    rates: np.ndarray  # (probes, layers)
    bits: np.ndarray  # (probes,) total bits per weight
    values: np.ndarray  # (probes,)
    halves: np.ndarray  # (probes, 2)


@dataclass(frozen=True)
class Fitted:
    predictor: Predictor
    summary: dict[str, Any]


def error_of(run: Run) -> Callable[[str, Entry], float]:
    return lambda name, entry: run.store.get(run.subject.layer(name), entry.format).error


def read_probes(run: Run, metric: str) -> Probes:
    """Raises InputError for probes of another extractor or reference than the rest, for NaN labels and for too few."""
    settings = run.settings
    records = [
        r
        for r in read_records(run.folder / "probes.jsonl", "probe")
        if r["purpose"] == "probe" and r["n_images"] == settings.n_images and r["steps"] == settings.steps
    ]
    for field in ("extractor", "reference"):
        found = {record[field] for record in records}
        if len(found) > 1:
            raise InputError(
                f"{run.folder / 'probes.jsonl'}: probes differ in field '{field}' ({', '.join(sorted(found))}); keep one kind, or start a new run"
            )
    if len(records) < LEAST_PROBES:
        raise InputError(
            f"{run.folder}: holds {len(records)} probes, a fit needs at least {LEAST_PROBES}; run `sedaq probe` with more --configs"
        )
    if metric not in records[0]["metrics"]:
        raise InputError(f"{run.folder}: its probes have no metric {metric!r}; choose one of {', '.join(records[0]['metrics'])}")
    look_up = error_of(run)
    choices = [{name: run.entry(name, Format.parse(text)) for name, text in record["layers"].items()} for record in records]
    cache: dict[tuple[str, str], float] = {}
    for choice in choices:
        for name, entry in choice.items():
            key = (name, str(entry.format))
            if key not in cache:
                cache[key] = look_up(name, entry)
    names = [layer.name for layer in run.subject.layers]
    values = np.array([record["metrics"][metric]["value"] for record in records], dtype=float)
    if not np.isfinite(values).all():
        raise InputError(f"{run.folder / 'probes.jsonl'}: a probe's {metric} is not finite; remove its line, it will be measured again")
    if np.ptp(values) == 0:
        raise InputError(f"{run.folder}: all probes have {metric} {values[0]:g}; there is nothing to learn, use more images or lower rates")
    return Probes(
        [record["plan_hash"] for record in records],
        np.array([[cache[name, str(choice[name].format)] for name in names] for choice in choices]),
        np.array([[choice[name].rate for name in names] for choice in choices]),
        np.array([record["bits_per_weight"] for record in records]),
        values,
        np.array([record["metrics"][metric]["halves"] for record in records]),
    )


def noise_ceiling(halves: np.ndarray) -> float:
    """√(2r / (1 + r)): the rank correlation that a perfect predictor would reach with labels as noisy as these (Spearman–Brown)."""
    r = max(_spearman(halves[:, 0], halves[:, 1]), 0.0)
    return float(np.sqrt(2 * r / (1 + r)))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b)[0])


def _interval(statistic: Callable[[np.ndarray], float], n: int, seed: int) -> list[float]:
    """95 % percentile interval over bootstrap samples of the probes."""
    rng = np.random.default_rng(seed)
    return np.percentile([statistic(rng.integers(n, size=n)) for _ in range(BOOTSTRAPS)], [2.5, 97.5]).tolist()


def _predictors(
    run: Run, metric: str, names: Sequence[str], seed: int
) -> dict[str, Callable[[Probes, np.ndarray, np.ndarray], np.ndarray]]:
    """Every way to predict, as (probes, training rows, test rows) → values; the first is ours."""

    def ours(p: Probes, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        fitted = Predictor.fit(metric, names, p.errors[train], p.rates[train], p.values[train], error_of(run), seed=seed, n_members=3)
        return fitted.predict_arrays(p.errors[test], p.rates[test])[0]

    def additive(p: Probes, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        target = transform(p.values[train])
        ridge = choose_ridge(p.errors[train], target, seed)
        return fit_additive(p.errors[train], target, ridge, anchor(p.errors[train], target))(p.errors[test])

    def ridge(p: Probes, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return RidgeCV(np.logspace(-2, 4, 13)).fit(p.rates[train], transform(p.values[train])).predict(p.rates[test])

    def forest(p: Probes, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return RandomForestRegressor(100, random_state=seed).fit(p.rates[train], transform(p.values[train])).predict(p.rates[test])

    return {
        "sedaq": ours,
        "additive part alone": additive,
        "average bits": lambda p, _, test: -p.bits[test],
        "summed Hessian error": lambda p, _, test: p.errors[test].sum(1),
        "ridge on bits": ridge,
        "random forest on bits": forest,
    }


def cross_validate(run: Run, probes: Probes, metric: str, names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Out-of-fold predictions of every predictor, (repeats, probes), on the same folds."""
    predictors = _predictors(run, metric, names, seed)
    n = len(probes.values)
    predicted = {name: np.empty((REPEATS, n)) for name in predictors}
    jobs = [(repeat, fold) for repeat in range(REPEATS) for fold in range(FOLDS)]
    for repeat, fold in track(jobs, "cross-validation"):
        folds = np.random.default_rng([seed, repeat]).permutation(n) % FOLDS
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        for name, predict in predictors.items():
            predicted[name][repeat, test] = predict(probes, train, test)
    return predicted


def fit(run: Run, *, metric: str = "fid", seed: int | None = None) -> Fitted:
    """Fit, cross-validate and explain; writes predictor/ (model, fit.json, sensitivity.csv) into the run. A fit of the same probes is read back.

    Raises:
        InputError: for too few probes, labels that are all equal or not finite, and mixed kinds of probes.
    """
    seed = run.settings.seed if seed is None else seed
    probes = read_probes(run, metric)
    identity = {"subject": run.subject.fingerprint, "probes": fingerprint([sorted(probes.hashes), metric, seed])}
    folder = run.folder / "predictor"
    if (folder / "fit.json").exists() and (folder / "additive.json").exists():
        predictor, found = Predictor.load(folder, error_of(run))
        summary = read_json(folder / "fit.json", "fit")
        if all(found[name] == value for name, value in identity.items()) and summary["probes"] == identity["probes"]:
            return Fitted(predictor, summary)
    names = [layer.name for layer in run.subject.layers]
    predicted = cross_validate(run, probes, metric, names, seed)

    def spearman(name: str, rows: np.ndarray | slice = slice(None)) -> float:
        return float(np.mean([_spearman(p[rows], probes.values[rows]) for p in predicted[name]]))

    predictor = Predictor.fit(metric, names, probes.errors, probes.rates, probes.values, error_of(run), seed=seed)
    n = len(probes.values)
    first = predicted["sedaq"].mean(0)
    summary = {
        "metric": metric,
        "probes": identity["probes"],
        "n_probes": n,
        "spearman": spearman("sedaq"),
        "spearman_ci": _interval(lambda rows: spearman("sedaq", rows), n, seed),
        "ceiling": noise_ceiling(probes.halves),
        "ceiling_ci": _interval(lambda rows: noise_ceiling(probes.halves[rows]), n, seed),
        "baselines": {name: spearman(name) for name in predicted if name != "sedaq"},
        "predictions": [
            {"plan_hash": h, "bits_per_weight": float(b), "measured": float(m), "predicted": float(p)}
            for h, b, m, p in zip(probes.hashes, probes.bits, probes.values, first, strict=True)
        ],
    }
    predictor.save(folder, identity)
    buffer = io.StringIO()
    sensitivity_table(run, predictor, probes).to_csv(buffer, index=False)
    write_atomically(folder / "sensitivity.csv", buffer.getvalue().encode())
    write_json(folder / "fit.json", "fit", summary)
    return Fitted(predictor, summary)


def sensitivity_table(run: Run, predictor: Predictor, probes: Probes) -> pd.DataFrame:
    """One row for each layer and menu entry: what the layer alone would cost at that rate, with a 95 % interval over the ensemble."""
    contributions, _ = predictor.contributions(probes.errors, probes.rates)
    mean_contribution = np.abs(contributions - contributions.mean(0)).mean(0)
    rows = []
    for index, layer in enumerate(run.subject.layers):
        for entry in run.menus[layer.name]:
            costs = predictor.costs(layer.name, entry)
            low, high = np.percentile(costs, [2.5, 97.5])
            rows.append(
                {
                    "layer": layer.name,
                    "role": layer.role,
                    "block": layer.block,
                    "kind": layer.kind,
                    "n_weights": layer.n_weights,
                    "rate": entry.rate,
                    "format": str(entry.format),
                    "bits_per_weight": 8 * entry.size_bytes / layer.n_weights,
                    "size_bytes": entry.size_bytes,
                    "error": error_of(run)(layer.name, entry),
                    "cost": costs.mean(),
                    "cost_low": low,
                    "cost_high": high,
                    "contribution": mean_contribution[index],
                }
            )
    return pd.DataFrame(rows)


def load_predictor(run: Run) -> Predictor:
    """What `fit` wrote. Raises InputError where there is none, or it is of another model."""
    folder = run.folder / "predictor"
    if not (folder / "additive.json").exists():
        raise InputError(f"{run.folder}: has no predictor; run `sedaq fit --run {run.folder}` first")
    predictor, identity = Predictor.load(folder, error_of(run))
    if identity["subject"] != run.subject.fingerprint:
        raise InputError(
            f"{folder / 'additive.json'}: field 'subject' is {identity['subject']}, the run's is {run.subject.fingerprint}; run `sedaq fit` again"
        )
    return predictor
