"""A run's probes as arrays, checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...aq.formats import Format
from ...errors import InputError
from ...storage import ends_cut_short, fingerprint
from ..metrics.registry import DEFAULT, metric_of
from ..predictor.additive import Array, Labels
from ..predictor.features import TreeFeatures
from ..predictor.layer_priors import LayerPriors
from ..prior.use import learnt_layers
from ..run import PROBE, TUNED_PROBE, Run, probe_journal
from .layer_statistics import LayerStatistics

MIN_PROBES = 12
RUINED_SHARE = 1 / 3  # of the probes, above which a fit says so


@dataclass(frozen=True)
class LayerTable:
    """The layers of a model as a predictor knows them, in the order of all arrays."""

    names: Sequence[str]
    roles: Sequence[str]
    blocks: Sequence[str]
    priors: LayerPriors

    @property
    def features(self) -> TreeFeatures:
        return TreeFeatures(self.roles, self.blocks)


@dataclass(frozen=True, eq=False)
class Probes:
    """Plans and what was measured; layers in the run's order.

    full_precision: the metric at full precision, values: the metric, both at the run's number of images and with their sign turned where higher is better.
    halves: the excess over full precision from disjoint halves of the images. notes: what a reader should know, one sentence each.
    tuned_steps: of tuning, after which all were measured.
    """

    hashes: list[str]
    table: LayerTable
    rates: Array  # (probes, layers)
    weight_errors: Array  # (probes, layers)
    errors: Array  # (probes, layers)
    scores: Array  # (probes, layers)
    bits: Array  # (probes,) total bits per weight
    labels: Labels
    halves: Array  # (probes, 2)
    notes: tuple[str, ...] = ()
    tuned_steps: int = 0

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def full_precision(self) -> float:
        return self.labels.full_precision

    @property
    def values(self) -> Array:
        return self.full_precision + self.labels.excess

    def __getitem__(self, rows: Any) -> Probes:
        arrays = {name: getattr(self, name)[rows] for name in ("rates", "weight_errors", "errors", "scores", "bits", "labels", "halves")}
        return replace(self, hashes=[str(h) for h in np.array(self.hashes)[rows]], **arrays)


def layer_table(run: Run, statistics: LayerStatistics, *, tuned: bool = False, n_probes: int = 0) -> LayerTable:
    """A run's layers, with what other models taught of them where there is a learnt prior, which speaks of plans that are not tuned.

    The shipped prior makes way for MIN_PROBES probes and more: on models left out it orders plans no better than gradient scores then.
    """
    layers = run.subject.layers
    of_menus = [[statistics.of_entry(layer.name, entry) for entry in run.menus[layer.name]] for layer in layers]
    errors, scores = ([np.array([getattr(t, name) for t in menu]) for menu in of_menus] for name in ("error", "score"))
    return LayerTable(
        [layer.name for layer in layers],
        [layer.role for layer in layers],
        [layer.block for layer in layers],
        LayerPriors.of(errors, scores, None if tuned else learnt_layers(run, statistics, shipped=n_probes < MIN_PROBES)),
    )


def read_probes(
    run: Run,
    metric: str = DEFAULT,
    *,
    purpose: str = PROBE,
    tuned_steps: int | None = None,
    statistics: LayerStatistics | None = None,
    others: Sequence[dict[str, Any]] = (),
    at_least: int = MIN_PROBES,
) -> Probes:
    """The probes of a run, each plan once, by its measurement with most images.

    Args:
        tuned_steps: of tuned plans; as many as most of them have by default.
        others: records of measurements for other purposes, which count as probes too.
        at_least: so many are needed.

    Raises:
        InputError: for probes of another model, extractor or reference than the rest, for too few, and for labels that are all equal.
    """
    journal = probe_journal(run.folder)
    found = [r for r in journal.read() if r["purpose"] == purpose and r["steps"] == run.settings.steps]
    if tuned_steps is None:
        tuned_steps = _usual_steps(found) if purpose == TUNED_PROBE else 0
    found = [r for r in found if r.get("tuned_steps", 0) == tuned_steps]
    notes = [f"the last line of {path.name} was cut short and is left out" for path in journal.shards() if ends_cut_short(path)]
    found += others
    _check(run, found, metric)
    finite = [record for record in found if excess(record, metric, found) is not None]
    notes += _left_out_or_ruined(found, len(finite), metric)
    largest: dict[str, dict[str, Any]] = {}  # by plan, the measurement with most images
    for record in finite:
        if record["n_images"] > largest.get(record["plan_hash"], {"n_images": 0})["n_images"]:
            largest[record["plan_hash"]] = record
    records = list(largest.values())
    if len(records) < at_least:
        raise InputError(
            f"{run.folder}: holds {len(records)} probes with a finite {metric}, a fit needs at least {at_least}; "
            f"run `sedaq probe` with more `configs`{' and `tuned_steps`' if purpose == TUNED_PROBE else ''}"
        )
    statistics = statistics or LayerStatistics(run)
    names = [layer.name for layer in run.subject.layers]
    formats = [{name: Format.parse(record["layers"][name]) for name in names} for record in records]
    of_plans = [[statistics(name, plan[name]) for name in names] for plan in formats]
    errors, weight_errors, scores = (
        np.array([[getattr(t, name) for t in plan] for plan in of_plans]) for name in ("error", "weight_error", "score")
    )
    measured = np.array([excess(record, metric, finite) for record in records])  # (probes, 4): value, se, halves
    if np.ptp(measured[:, 0]) == 0:
        raise InputError(
            f"{run.folder}: all probes have {metric} {records[0]['metrics'][metric]['value']:g}; there is nothing to learn, "
            "use more images or lower rates"
        )
    return Probes(
        [record["plan_hash"] for record in records],
        layer_table(run, statistics, tuned=purpose == TUNED_PROBE, n_probes=len(records)),
        np.array([[run.entry(name, plan[name]).rate for name in names] for plan in formats]),
        weight_errors,
        errors,
        scores,
        np.array([record["bits_per_weight"] for record in records]),
        Labels.of(measured[:, 0], measured[:, 1], _baseline(finite, metric, run.settings.n_images)),
        measured[:, 2:],
        tuple(notes),
        tuned_steps,
    )


def _left_out_or_ruined(records: Sequence[dict[str, Any]], n_finite: int, metric: str) -> list[str]:
    """What a reader should know of so many probes that are no numbers, or whose images are ruined."""
    notes, n_ruined = [], sum(bool(record.get("ruined")) for record in records)
    if n_finite < len(records):
        notes.append(f"{len(records) - n_finite} of {len(records)} probes have no finite {metric} and are left out")
    if n_ruined > RUINED_SHARE * len(records):
        notes.append(
            f"{n_ruined} of {len(records)} probes are ruined: their images are further from full precision's than these are from each other. "
            "Probe more, by the design layer or from higher rates, or fit feature_distance"
        )
    return notes


def _usual_steps(records: Sequence[dict[str, Any]]) -> int:
    """Steps of tuning that most plans were measured after; the greater number of two that are as frequent."""
    counts = Counter(int(record["tuned_steps"]) for record in records)
    return max(counts, key=lambda steps: (counts[steps], steps), default=0)


def _check(run: Run, records: Sequence[dict[str, Any]], metric: str) -> None:
    path = run.folder / "probes.jsonl"
    for record in records:
        if record["plan_hash"] != fingerprint([run.subject.fingerprint, record["layers"], {}, run.store.identity]):
            raise InputError(
                f"{path}: field 'plan_hash' of probe {record['plan_hash']} does not match this run; it was measured on another model or with "
                "other encodings, remove its line"
            )
    for field in ("extractor", "reference"):
        kinds = {record[field] for record in records}
        if len(kinds) > 1:
            raise InputError(f"{path}: probes differ in field '{field}' ({', '.join(sorted(kinds))}); keep one kind, or start a new run")
    known = {name: None for record in records for name in record["metrics"]}
    if records and metric not in known:
        raise InputError(f"{run.folder}: its probes have no metric {metric!r}; choose one of {', '.join(known)}")


def excess(record: dict[str, Any], metric: str, records: Sequence[dict[str, Any]]) -> tuple[float, float, float, float] | None:
    """How much worse than full precision with as many images: value, standard error, halves. None where it is not known or not finite."""
    paired = record["metrics"].get(metric_of(metric).excess_name)
    if paired is not None:
        numbers = (paired["value"], paired["se"], *paired["halves"])
        return None if None in numbers else numbers
    own, full_precision = record["metrics"].get(metric), _full_precision(records, metric, record)
    if own is None or full_precision is None or None in (own["value"], own["se"], *own["halves"]):
        return None
    sign = metric_of(metric).sign
    halves = [sign * (a - b) for a, b in zip(own["halves"], full_precision["halves"], strict=True)]
    return (sign * (own["value"] - full_precision["value"]), own["se"], halves[0], halves[1])


def _full_precision(records: Sequence[dict[str, Any]], metric: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """The metric of the plan that leaves every layer as it is, on as many images, and on the same noise if that was measured."""
    found = [r for r in records if r["n_images"] == record["n_images"] and set(r["layers"].values()) == {"asis"} and metric in r["metrics"]]
    return min(found, key=lambda r: r["purpose"] != record["purpose"])["metrics"][metric] if found else None


def _baseline(records: Sequence[dict[str, Any]], metric: str, n_images: int) -> float:
    sign = metric_of(metric).sign
    for record in sorted(records, key=lambda r: r["n_images"] != n_images):  # the run's number of images if there are any
        paired = record["metrics"].get(metric_of(metric).excess_name)
        full_precision = _full_precision(records, metric, record)
        if paired is not None:
            return float(sign * record["metrics"][metric]["value"] - paired["value"])
        if full_precision is not None:
            return float(sign * full_precision["value"])
    raise AssertionError("every record has an excess")
