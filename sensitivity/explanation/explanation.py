"""What the fitted additive model says of layers, roles and blocks, with intervals from a bootstrap over probes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ...aq.plans.menu import Entry
from ...progress import track
from ..predictor.additive import Additive, Array, fit_additive, fit_samples
from ..predictor.cross_validation import spearman
from ..predictor.predictor import Predictor
from ..probing.designs import at_rate
from ..probing.layer_statistics import LayerStatistics
from ..probing.probes import Probes
from ..run import Run

N_DRAWS = 100
N_SPLITS = 10
MAX_PAIRS_OF = 12  # layers whose pairs are looked at


@dataclass(frozen=True)
class Explanation:
    """The additive model fitted to all probes, and to bootstrap samples of them.

    entries: the menu of each layer; errors: (layers, K) of its entries, NaN beyond a menu's end.
    """

    probes: Probes
    entries: Sequence[Sequence[Entry]]
    errors: Array
    surrogate: Additive
    draws: Sequence[Additive]

    @classmethod
    def of(cls, run: Run, statistics: LayerStatistics, probes: Probes, ridge: float, seed: int) -> Explanation:
        names = probes.table.names
        entries = [run.menus[name] for name in names]
        errors = np.full((len(names), max(map(len, entries))), np.nan)
        for row, (name, menu) in enumerate(zip(names, entries, strict=True)):
            errors[row, : len(menu)] = [statistics.of_entry(name, entry).error for entry in menu]
        surrogate, *draws = fitted_surrogates(probes, ridge, seed)
        return cls(probes, entries, errors, surrogate, draws)

    @cached_property
    def terms(self) -> Array:
        """(1 + draws, layers, K) terms of every entry by the additive model and by each draw."""
        surrogates = (self.surrogate, *self.draws)
        return np.stack([np.stack([surrogate.terms(column) for column in self.errors.T], axis=1) for surrogate in surrogates])

    def cost(self, picks: Sequence[tuple[int, int]]) -> Array:
        """(1 + draws,) excess when these (layer, entry) are chosen and all other layers are left as they are."""
        total = sum((self.terms[:, layer, entry] for layer, entry in picks), np.zeros(len(self.terms)))
        return np.array([surrogate.of_total(one) for surrogate, one in zip((self.surrogate, *self.draws), total, strict=True)])

    @cached_property
    def together_over_apart(self) -> Array:
        """(1 + draws,) what all layers at their lowest entries cost together, over the sum of what each costs alone."""
        lowest = [(layer, 0) for layer in range(len(self.entries))]
        apart = sum((self.cost([pick]) for pick in lowest), np.zeros(len(self.terms)))
        return self.cost(lowest) / np.maximum(apart, 1e-300)

    def at(self, layer: int, rate: float) -> int:
        """Index of the entry that a layer has at a rate."""
        menu = self.entries[layer]
        format = at_rate(menu, rate)
        return next(index for index, entry in enumerate(menu) if entry.format == format)

    @property
    def rates(self) -> list[float]:
        """Of additive formats on any menu, ascending."""
        return sorted({entry.rate for menu in self.entries for entry in menu if entry.format.kind == "additive"})


def fitted_surrogates(probes: Probes, ridge: float, seed: int) -> list[Additive]:
    """The additive model of all probes, then those of N_DRAWS bootstrap samples."""
    rng = np.random.default_rng([seed, 1])
    samples = [np.arange(len(probes)), *(rng.integers(len(probes), size=len(probes)) for _ in range(N_DRAWS))]
    surrogates = fit_samples(probes.errors, probes.labels, probes.table.priors, ridge, samples)
    return list(track(surrogates, "bootstrap of the explanation", len(samples)))


def bounds(draws: Array) -> tuple[float, float, float]:
    """Value of the additive model, and a 95 % interval of its draws."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return float(draws[0]), float(low), float(high)


# -- tables ------------------------------------------------------------------------------------------------------------------------------


def layer_rows(run: Run, statistics: LayerStatistics, explanation: Explanation, predictor: Predictor) -> pd.DataFrame:
    """One row for each layer and menu entry: what the layer alone would cost, with a 95 % interval; and the mean size of the layer's contribution
    to log(excess + floor) over the probes."""
    probes = explanation.probes
    contributions, _ = predictor.contributions(probes.errors, probes.rates)
    mean_contribution = np.abs(contributions - contributions.mean(0)).mean(0)
    rows = []
    for index, layer in enumerate(run.subject.layers):
        for place, entry in enumerate(explanation.entries[index]):
            cost, low, high = bounds(explanation.cost([(index, place)]))
            trait = statistics.of_entry(layer.name, entry)
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
                    "weight_error": trait.weight_error,
                    "error": trait.error,
                    "gradient_score": trait.score,
                    "cost": cost,
                    "cost_low": low,
                    "cost_high": high,
                    "contribution": mean_contribution[index],
                }
            )
    return pd.DataFrame(rows)


def group_rows(explanation: Explanation) -> pd.DataFrame:
    """What all layers of a role, or of a block, cost together at each rate, the others left as they are."""
    table = explanation.probes.table
    rows = []
    for kind, labels in (("role", table.roles), ("block", table.blocks)):
        for label in dict.fromkeys(labels):
            members = [index for index, other in enumerate(labels) if other == label]
            for rate in explanation.rates:
                cost, low, high = bounds(explanation.cost([(index, explanation.at(index, rate)) for index in members]))
                rows.append(
                    {
                        "kind": kind,
                        "name": label or "outside of blocks",
                        "n_layers": len(members),
                        "rate": rate,
                        "cost": cost,
                        "cost_low": low,
                        "cost_high": high,
                    }
                )
    return pd.DataFrame(rows)


def interaction_rows(explanation: Explanation, predictor: Predictor) -> pd.DataFrame:
    """For pairs of the costliest layers at their lowest entries: excess of both less the sum of each alone, by the whole predictor.

    low and high are the least and the greatest of the ensemble's members.
    """
    names = list(explanation.probes.table.names)
    costliest = np.argsort(-explanation.terms[0, :, 0], kind="stable")[:MAX_PAIRS_OF]
    pairs = list(itertools.combinations(sorted(int(i) for i in costliest), 2))
    as_is = np.array([menu[-1].rate for menu in explanation.entries], dtype=float)
    lowered = [*((int(i),) for i in costliest), *pairs]
    errors, rates = np.zeros((len(lowered), len(names))), np.tile(as_is, (len(lowered), 1))
    for row, members in enumerate(lowered):
        for index in members:
            errors[row, index], rates[row, index] = explanation.errors[index, 0], explanation.entries[index][0].rate
    excess = dict(zip(lowered, (np.exp(predictor.predict_members(errors, rates)) - predictor.floor).T, strict=True))
    rows = []
    for a, b in pairs:
        extra = excess[a, b] - excess[a,] - excess[b,]
        rows.append(
            {
                "layer": names[a],
                "other": names[b],
                "alone": float(excess[a,].mean()),
                "other_alone": float(excess[b,].mean()),
                "together": float(excess[a, b].mean()),
                "interaction": float(extra.mean()),
                "low": float(extra.min()),
                "high": float(extra.max()),
            }
        )
    return pd.DataFrame(rows).sort_values("interaction", key=np.abs, ascending=False, kind="stable")


# -- how far it can be trusted -----------------------------------------------------------------------------------------------------------


def additivity(explanation: Explanation, predicted: Array) -> dict[str, Any]:
    """Measured excess over the sum of what each layer would cost alone: median and quartiles over the probes; and the same for all layers at their
    lowest entries by the additive model, with its interval.

    Args:
        predicted: out-of-fold values of the probes; their own median error stands beside.
    """
    probes = explanation.probes
    alone = explanation.surrogate.of_total(explanation.surrogate.terms(probes.errors)).sum(1)
    clear = (probes.labels.excess > 3 * probes.labels.se) & (alone > 0)
    if not clear.any():
        return {}
    ratio = probes.labels.excess[clear] / alone[clear]
    own = probes.labels.excess[clear] / np.maximum(predicted[clear] - probes.full_precision, probes.labels.floor / 3)
    low, median, high = np.percentile(ratio, [25, 50, 75])
    return {
        "measured_over_sum_alone": [float(median), float(low), float(high)],
        "error_of_additivity": float(np.median(np.abs(np.log(ratio)))),
        "error_of_predictor": float(np.median(np.abs(np.log(own)))),
        "together_over_apart": list(bounds(explanation.together_over_apart)),
    }


def stability(probes: Probes, lowest_errors: Array, ridge: float, seed: int) -> dict[str, Any]:
    """Rank correlation of the layers' costs at their lowest entries, (layers,) errors, between additive models fitted to random halves of the probes."""
    found = []
    for split in range(N_SPLITS):
        order = np.random.default_rng([seed, split]).permutation(len(probes))
        halves = [probes[half] for half in np.array_split(order, 2)]
        found.append(spearman(*(fit_additive(half.errors, half.labels, half.table.priors, ridge).terms(lowest_errors) for half in halves)))
    return {"rank_correlation_of_halves": float(np.mean(found)), "least": min(found), "greatest": max(found)}
