"""The design that looks at what it has measured: it asks for the plans that teach most, and stops when the ranking of layers is stable.

Plans are measured in rounds. A round is a quarter stratified plans, for breadth, and plans of the front as one bootstrap sample of the probes sees
it (Thompson sampling), those first on which the samples' additive models disagree most. Every plan is measured with a quarter of the images; plans that no
other, or only one, beats in both bits and distance are measured again with all of them. Where other models taught a prior, half of the first round are plans on
which draws of it disagree most.

Stopping rule: the layers' costs at their lowest entries are ranked by the additive model fitted to all probes and by each of N_SURROGATES additive models fitted to bootstrap
samples; when the mean rank correlation is at least STABLE in two successive rounds, and MIN_PLANS plans are measured, the ranking is stable.

Proposals depend on the seed and on this design's own measurements alone, so that a run that was cut off goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...aq.formats import Format
from ..metrics.registry import DEFAULT, metric_of
from ..predictor.additive import RIDGES, Additive, Array, Labels, fit_samples
from ..predictor.cross_validation import spearman
from ..predictor.predictor import Predictor
from ..run import Run
from .designs import Plan, design_plans
from .layer_statistics import LayerStatistics
from .measurer import Measurer, PlanTask
from .prober import Measurement
from .probes import excess, layer_table

ROUND, STRATIFIED = 8, 2  # plans in a round, and how many of them are stratified
START = 16  # stratified plans before the first proposal
N_SURROGATES, N_POOL = 8, 64
FEW, MIN_IMAGES = 4, 32  # a first measurement has one in FEW of the images, and at least MIN_IMAGES
PROMOTED = 2  # plans a round that are measured again at most
STABLE, MIN_PLANS = 0.95, 32


@dataclass(frozen=True)
class Outcome:
    """How the design went: plans measured, rank correlation after each round, and whether the rule stopped it."""

    n_plans: int
    rankings: list[float]
    stable: bool


@dataclass
class _Seen:
    """A plan, its measurement with most images, and its index in the menus."""

    plan: Plan
    measurement: Measurement
    picks: tuple[int, ...]

    @property
    def bits(self) -> float:
        return float(self.measurement.record["bits_per_weight"])


@dataclass
class Adaptive:
    """Measures at most `limit` plans of a run and goes by one metric.

    Iterating over `measure` does the work and yields, after each measurement, how many plans are new by it; `outcome` tells how it went.
    """

    run: Run
    measurer: Measurer
    limit: int
    metric: str = DEFAULT
    rankings: list[float] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)  # of all measurements

    def __post_init__(self) -> None:
        run, names = self.run, [layer.name for layer in self.run.subject.layers]
        statistics = LayerStatistics(run)
        self.names, self.menus = names, [run.menus[name] for name in names]
        self.table = layer_table(run, statistics)  # before any probe
        self.priors = layer_table(run, statistics, n_probes=self.limit).priors
        width = max(map(len, self.menus))
        self.errors, self.sizes = np.zeros((len(names), width)), np.full((len(names), width), np.inf)
        for row, (name, menu) in enumerate(zip(names, self.menus, strict=True)):
            self.errors[row, : len(menu)] = [statistics.of_entry(name, entry).error for entry in menu]
            self.sizes[row, : len(menu)] = [entry.size_bytes for entry in menu]
        self.seen: dict[tuple[int, ...], _Seen] = {}
        stratified = design_plans("stratified", run.subject.layers, run.menus, n_plans=self.limit, seed=run.settings.seed)
        self._stratified: Iterator[Plan] = iter(stratified)

    @property
    def few(self) -> int:
        n_images = self.run.settings.n_images
        return min(n_images, max(MIN_IMAGES, n_images // FEW))

    @property
    def stable(self) -> bool:
        return len(self.seen) >= min(MIN_PLANS, self.limit) and len(self.rankings) > 1 and min(self.rankings[-2:]) >= STABLE

    @property
    def outcome(self) -> Outcome:
        return Outcome(len(self.seen), self.rankings, self.stable)

    def measure(self) -> Iterator[int]:
        start = min(START, self.limit)
        if unsure := self._unsure(start // 2):
            yield from self._measured([*unsure, *self._full_precision()], self.few)
        yield from self._measured(self._next_stratified(start - len(self.seen)), self.few)
        while len(self.seen) < self.limit:
            surrogates = self._surrogates()
            self.rankings.append(self._agreement(surrogates))
            if self.stable:
                return
            size = min(ROUND, self.limit - len(self.seen))
            before = len(self.seen)
            proposed = self._propose(surrogates, size - min(STRATIFIED, size))
            yield from self._measured([*proposed, *self._next_stratified(size - len(proposed), besides=proposed)], self.few)
            if len(self.seen) == before:  # the model has no more plans
                return
            yield from self._measured([*self._full_precision(), *self._near_the_front()], self.run.settings.n_images)

    # -- measuring -------------------------------------------------------------------------------------------------------------------

    def _measured(self, plans: Sequence[Plan], n_images: int) -> Iterator[int]:
        tasks = [PlanTask(plan, n_images) for plan in plans]
        for plan, measurement in zip(plans, self.measurer.in_order(tasks), strict=True):
            picks = self._picks(plan)
            new = picks not in self.seen
            self.seen[picks] = _Seen(plan, measurement, picks)
            self.records.append(measurement.record)
            yield int(new)

    def _picks(self, plan: Plan) -> tuple[int, ...]:
        return tuple(
            next(index for index, entry in enumerate(menu) if entry.format == plan[name])
            for name, menu in zip(self.names, self.menus, strict=True)
        )

    def _next_stratified(self, n: int, besides: Sequence[Plan] = ()) -> list[Plan]:
        found: list[Plan] = []
        others = {self._picks(plan) for plan in besides}
        while len(found) < n and (plan := next(self._stratified, None)) is not None:
            if self._picks(plan) not in self.seen.keys() | others:
                found.append(plan)
        return found

    def _full_precision(self) -> list[Plan]:
        """The plan that leaves every layer as it is, with all images, where measurements do not state their excess over it themselves."""
        plan = {name: menu[-1].format for name, menu in zip(self.names, self.menus, strict=True)}
        measured = any(set(r["layers"].values()) == {"asis"} and r["n_images"] == self.run.settings.n_images for r in self.records)
        return [] if measured or metric_of(self.metric).records_excess else [plan]

    def _near_the_front(self) -> list[Plan]:
        """Plans to be measured again, with all images."""
        finite, labels = self._finite()
        bits, worse = np.array([seen.bits for seen in finite]), labels[:, 0]
        beaten = ((bits[:, None] >= bits) & (worse[:, None] > worse)).sum(1)
        near = [seen for seen, n in sorted(zip(finite, beaten, strict=True), key=lambda pair: int(pair[1])) if n <= 1]
        return [seen.plan for seen in near if seen.measurement.record["n_images"] < self.run.settings.n_images][:PROMOTED]

    # -- learning --------------------------------------------------------------------------------------------------------------------

    def _finite(self) -> tuple[list[_Seen], Array]:
        """Plans whose excess over full precision is known and finite, and their excess and its standard error (n, 2)."""
        known = [(seen, excess(seen.measurement.record, self.metric, self.records)) for seen in self.seen.values()]
        return [seen for seen, label in known if label is not None], np.array([label[:2] for _, label in known if label is not None])

    def _surrogates(self) -> list[Additive]:
        """The additive model of all finite probes, then those of bootstrap samples."""
        finite, of_excess = self._finite()
        worse, se = of_excess.T
        values = metric_of(self.metric).sign * np.array([seen.measurement.metrics[self.metric].value for seen in finite])
        labels = Labels.of(worse, se, float(np.median(values - worse)))
        errors = self._errors_of([seen.picks for seen in finite])
        rng = np.random.default_rng([self.run.settings.seed, len(self.seen)])
        samples = [np.arange(len(finite)), *(rng.integers(len(finite), size=len(finite)) for _ in range(N_SURROGATES))]
        return list(fit_samples(errors, labels, self.priors, RIDGES[1], samples))

    def _errors_of(self, picks: Sequence[Sequence[int]]) -> Array:
        """(n, layers)"""
        return np.asarray(self.errors[np.arange(len(self.names)), np.array(picks)])

    def _agreement(self, surrogates: Sequence[Additive]) -> float:
        lowest = self.errors[:, 0]
        return float(np.mean([spearman(surrogates[0].terms(lowest), surrogate.terms(lowest)) for surrogate in surrogates[1:]]))

    def _unsure(self, n: int) -> list[Plan]:
        """Where what other models taught is least sure; nothing where they taught nothing."""
        if self.table.priors.learnt is None:
            return []
        draws = Predictor.of_prior(self.metric, self.table, full_precision=1.0, error_of=lambda *_: 0.0, seed=self.run.settings.seed)
        return self._propose([member.additive for member in draws.members[: 1 + N_SURROGATES]], n)

    def _propose(self, surrogates: Sequence[Additive], n: int) -> list[Plan]:
        """Unmeasured plans of the additive models' fronts, those first on whose excess the additive models disagree most."""
        rng = np.random.default_rng([self.run.settings.seed, len(self.seen), 1])
        pool = {self._on_front(surrogates[1 + i % N_SURROGATES], rng): None for i in range(N_POOL)}
        new = [picks for picks in pool if picks not in self.seen]
        if not new:
            return []
        logs = np.log(np.stack([surrogate.excess(self._errors_of(new)) for surrogate in surrogates[1:]]) + 1e-6)
        chosen = np.argsort(-logs.std(0), kind="stable")[:n]
        return [self._plan(new[i]) for i in chosen]

    def _on_front(self, surrogate: Additive, rng: np.random.Generator) -> tuple[int, ...]:
        """The least sum of terms at a random price of bytes, a little different for every layer."""
        terms = np.stack([surrogate.terms(column) for column in self.errors.T], axis=1)
        real = np.isfinite(self.sizes)
        steps = np.where(real[:, 1:], (terms[:, :-1] - terms[:, 1:]) / np.maximum(np.diff(np.where(real, self.sizes, 0)), 1), np.nan)
        low, high = np.nanquantile(np.log(np.maximum(steps, 1e-30)), (0.1, 0.9))
        price = np.exp(rng.uniform(low, high) + 0.5 * rng.normal(size=len(self.names)))
        return tuple(int(k) for k in np.argmin(np.where(real, terms + price[:, None] * np.where(real, self.sizes, 0), np.inf), axis=1))

    def _plan(self, picks: Sequence[int]) -> dict[str, Format]:
        return {name: menu[k].format for name, menu, k in zip(self.names, self.menus, picks, strict=True)}
