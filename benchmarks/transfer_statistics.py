"""What predictions of unseen plans are worth, over models: scores, and 90 % intervals by a bootstrap over models and over the plans of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedaq.sensitivity.predictor.cross_validation import noise_ceiling, spearmans
from sedaq.sensitivity.prior.model import Z90
from sedaq.sensitivity.prior.response import Response

Array = NDArray[np.float64]
Key = tuple[str, int]  # predictor, number of probes that it learnt from

SHARE, LOG_RATIO, COVERED = SCORES = ("share", "log_ratio", "covered")


@dataclass(frozen=True)
class Said:
    """What a predictor says of plans, (plans,) each.

    order: by which it puts them in order, the best first. logs, widths: mean and standard deviation of the logarithm of the effect over full precision's
    distance; None where it says no such thing.
    """

    order: Array
    logs: Array | None = None
    widths: Array | None = None


@dataclass(frozen=True)
class Judged:
    """One model's unseen plans: effects and their standard errors over full precision's distance, (plans,) each, halves of the images, (plans, 2), and what
    each predictor said."""

    model: str
    effects: Array
    noise: Array
    halves: Array
    said: Mapping[Key, Said]

    def scores(self, rows: Any) -> Array:
        """(SCORES, predictors) of some of the plans; NaN where a predictor has no such score.

        share: rank correlation with what was measured over its noise ceiling. log_ratio: median |log(predicted / measured)| of plans that are clear of noise.
        covered: share of the labels in their 90 % intervals, to which noise belongs.
        """
        effects, all_said = self.effects[rows], list(self.said.values())
        ceiling = noise_ceiling(self.halves[rows])
        orders = np.array([said.order[rows] for said in all_said])
        found = np.full((len(SCORES), len(all_said)), np.nan)
        if ceiling > 0:
            found[0] = spearmans(orders, effects) / ceiling
        labels = Response(effects, self.noise[rows], np.ones(len(effects)), np.zeros(len(effects), dtype=int))
        clear = effects > 2 * labels.noise
        for place, said in enumerate(all_said):
            if said.logs is not None and clear.any():
                found[1, place] = np.median(np.abs(said.logs[rows][clear] - np.log(effects[clear])))
            if said.logs is not None and said.widths is not None:
                logs = said.logs[rows]
                width = np.sqrt((said.widths[rows] * labels.slope(logs)) ** 2 + labels.noise_variance(logs))
                found[2, place] = np.mean(np.abs(labels.residual(logs)) <= Z90 * width)
        return found


def resampled(counts: Sequence[int], statistic: Callable[[int, Any], Array], *, n_draws: int = 1000, seed: int = 0) -> tuple[Array, Array]:
    """Mean of a statistic over groups, and draws of it, (n_draws, …): groups are drawn with replacement, and within each its members (Davison & Hinkley 1997,
    section 3.8). What is NaN does not count.

    Args:
        counts: members of each group. statistic: of a group by its number, and of the rows of it.
    """
    rng = np.random.default_rng(seed)
    whole = _mean([statistic(group, np.arange(count)) for group, count in enumerate(counts)])
    draws = []
    for _ in range(n_draws):
        groups = rng.integers(len(counts), size=len(counts))
        draws.append(_mean([statistic(group, rng.integers(counts[group], size=counts[group])) for group in groups]))
    return whole, np.array(draws)


def _mean(values: Sequence[Array]) -> Array:
    """Of what is not NaN."""
    stacked = np.array(values, dtype=float)
    known = np.isfinite(stacked)
    return np.where(known.any(0), np.where(known, stacked, 0.0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def estimate(value: float, draws: Array) -> dict[str, Any] | None:
    """Value and 90 % percentile interval; None for what is not known."""
    known = draws[np.isfinite(draws)]
    return None if not np.isfinite(value) or not len(known) else {"value": float(value), "ci": np.quantile(known, [0.05, 0.95]).tolist()}


def summarize(models: Sequence[Judged], comparisons: Sequence[tuple[Key, Key]], *, n_draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Rows for a result file: `predictors` and `differences` over all models, the latter paired, and `models`, each by itself.

    Args:
        comparisons: pairs of predictors; of each the first one's score less the second one's. Those that were not judged are left out.
    """
    keys = list(models[0].said)
    mean, draws = resampled(
        [len(one.effects) for one in models], lambda group, rows: models[group].scores(rows), n_draws=n_draws, seed=seed
    )
    predictors = [
        {**_named(key), **{name: estimate(mean[i, place], draws[:, i, place]) for i, name in enumerate(SCORES)}}
        for place, key in enumerate(keys)
    ]
    differences = []
    for one, other in comparisons:
        if one in keys and other in keys:
            a, b = keys.index(one), keys.index(other)
            found = {name: estimate(mean[i, a] - mean[i, b], draws[:, i, a] - draws[:, i, b]) for i, name in enumerate(SCORES)}
            differences.append({**_named(one), "against": other[0], "against_probes": other[1], **found})
    rows = []
    for one in models:
        scores = one.scores(np.arange(len(one.effects)))
        own = {"model": one.model, "n_plans": len(one.effects), "ceiling": noise_ceiling(one.halves)}
        rows += [{**own, **_named(key), **_numbers(scores[:, place])} for place, key in enumerate(keys)]
    return {"predictors": predictors, "differences": differences, "models": rows}


def _named(key: Key) -> dict[str, Any]:
    return {"predictor": key[0], "n_probes": key[1]}


def _numbers(scores: Array) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in zip(SCORES, scores, strict=True)}
