"""The additive part of the predictor: what layers' errors do to the Fréchet distance, before trees.

    excess = S (1 + S/κ)^(r−1),    S = Σ_l t_l,    t_l = exp(θ_l + p_l (log e_l − ē_l) + β_l(e_l))

excess is the distance above full precision's on the same noise, e_l the relative output error of layer l's encoding under its Hessian, ē_l the
mean of its logarithm over the layer's menu. θ_l says how sensitive the layer is, p_l how steeply its harm falls with its error, β_l bends that line
where the probes say so (a number for every entry of the menu, linear between them; t_l never falls with e_l). Small harms add up, so that a
small t_l is what layer l costs alone; far above κ they grow with the power r, as deviations of images that point the same way would with r = 2.

Fitted by penalized least squares in log(excess + floor), by L-BFGS: plans that are nearly lossless count as much as ruined ones. With more layers
than probes the priors carry: θ_l ~ b + q · log(gradient score), q ~ 0.8, log p_l ~ a common log p, β_l ~ 0, r ~ 1, κ ~ d₀, the distance of full
precision; b, q, p, r and κ are fitted too. Where other models taught a prior, θ_l ~ b + q m_l with q ~ 1 and widths of its own for every layer, and
p_l ~ its exponents times a common factor. Why d₀: where features are off by m already, a shift s adds 2ms + s², which is linear up to s ~ m and a square beyond.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array

from .layer_priors import Array, LayerPriors

RIDGES = (0.03, 0.3, 3.0)  # pull of θ_l to its prior, in units of squared residuals
OFFSET_RIDGE = 1.0  # pull of β to zero
PRIOR_EXPONENT, PRIOR_POWER, PRIOR_SATURATION = 1.5, 1.0, 1.0  # the saturation scale as a multiple of full precision's distance
# Of the priors of b, q, log r, the common log p and log κ: one over their variance; and, steeper, beyond the WIDEST logarithms of r and p, where a second
# minimum lies that means nothing. Bounds would do the same, but lead L-BFGS astray on its way.
CERTAINTY, WIDEST, BARRIER = np.array([0.0, 1.0, 0.1, 0.1, 0.25]), np.array([np.inf, np.inf, 1.1, 0.8, np.inf]), 100.0
# q, of gradient scores. Left free, six probes made an order of it that was worse than that of the scores (benchmarks/transfer.py).
SCORE_FACTOR = 0.8
RESIDUAL = 0.1  # of the additive model itself, in log(excess + floor): labels noisier than that weigh less
_TINY, _FAR = 1e-12, 1e30


@dataclass(frozen=True)
class Labels:
    """What probes measured, (probes,) each.

    full_precision: what it measures. floor: the excess below which noise hides differences; targets are log(excess + floor).
    """

    excess: Array
    se: Array
    full_precision: float
    floor: float

    @classmethod
    def of(cls, excess: Array, se: Array, full_precision: float) -> Labels:
        """The floor is the median standard error of the third of the probes that lost least."""
        best = np.argsort(excess, kind="stable")[: max(1, len(excess) // 3)]
        return cls(excess, se, full_precision, max(float(np.median(se[best])), 1e-3 * float(np.median(np.abs(excess))), _TINY))

    @property
    def target(self) -> Array:
        """log(excess + floor); what noise made less than full precision ends at a third of the floor."""
        return np.log(np.maximum(self.excess + self.floor, self.floor / 3))

    @property
    def weights(self) -> Array:
        """1 for a label without noise, less for one whose noise exceeds the additive model's own residual."""
        noise = self.se / np.maximum(self.excess + self.floor, self.floor)
        return 1 / (1 + (noise / RESIDUAL) ** 2)

    def __getitem__(self, rows: Any) -> Labels:
        return Labels(self.excess[rows], self.se[rows], self.full_precision, self.floor)


@dataclass(frozen=True)
class Additive:
    """A fitted additive model; parameters as in the formula above, log_errors is ē.

    knots, offsets: (layers, K) ascending log errors and the values of β there; rows of fewer knots end far away.
    """

    log_slopes: Array  # θ
    exponents: Array  # p
    power: float  # r
    saturation: float  # κ
    log_errors: Array
    knots: Array
    offsets: Array

    @classmethod
    def straight(cls, log_slopes: Array, exponents: Array, power: float, saturation: float, log_errors: Array) -> Additive:
        """Without piecewise-linear offsets."""
        return cls(log_slopes, exponents, power, saturation, log_errors, *_padded([[]] * len(log_slopes), [[]] * len(log_slopes)))

    @classmethod
    def across(cls, surrogates: Sequence[Additive], layer: int) -> Additive:
        """One layer by each of several additive models, as if these were its layers; how terms add up is left out."""
        slopes, exponents, logs = (
            np.array([getattr(surrogate, name)[layer] for surrogate in surrogates]) for name in ("log_slopes", "exponents", "log_errors")
        )
        known = [surrogate.knots[layer] < _FAR for surrogate in surrogates]
        rows = (
            [getattr(surrogate, name)[layer][there] for surrogate, there in zip(surrogates, known, strict=True)]
            for name in ("knots", "offsets")
        )
        return cls(slopes, exponents, 1.0, 1.0, logs, *_padded(*rows))

    def terms(self, errors: Array) -> Array:
        """t_l, of the shape of errors (…, layers); a layer without error has none."""
        present = errors > 0
        logs = np.log(np.where(present, errors, 1.0))
        line = self.log_slopes + self.exponents * (logs - self.log_errors)
        return np.where(present, np.exp(np.clip(line + self._offset(logs), -60, 60)), 0.0)

    def _offset(self, logs: Array) -> Array:
        """β: linear between knots, constant beyond them."""
        knots, offsets = self.knots, self.offsets
        rows, last = np.arange(len(knots)), knots.shape[1] - 1
        n_below = (logs[..., None] >= knots).sum(-1)
        left, right = np.clip(n_below - 1, 0, last), np.clip(n_below, 0, last)
        start, width = knots[rows, left], knots[rows, right] - knots[rows, left]
        share = np.where(width > 0, (logs - start) / np.where(width > 0, width, 1.0), 0.0)
        return np.asarray(offsets[rows, left] + share * (offsets[rows, right] - offsets[rows, left]))

    def of_total(self, total: Array) -> Array:
        """The excess of a sum of terms."""
        return np.asarray(total * (1 + total / self.saturation) ** (self.power - 1))

    def excess(self, errors: Array) -> Array:
        """(…, layers) → (…,)"""
        return self.of_total(self.terms(errors).sum(-1))

    def to_json(self) -> dict[str, Any]:
        lists = {name: getattr(self, name).tolist() for name in ("log_slopes", "exponents", "log_errors")}
        known = [row < _FAR for row in self.knots]
        for name, rows in (("knots", self.knots), ("bends", self.offsets)):
            lists[name] = [row[there].tolist() for row, there in zip(rows, known, strict=True)]
        return {**lists, "power": self.power, "knee": self.saturation}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Additive:
        slopes, exponents, logs = (np.array(content[name], dtype=float) for name in ("log_slopes", "exponents", "log_errors"))
        return cls(slopes, exponents, float(content["power"]), float(content["knee"]), logs, *_padded(content["knots"], content["bends"]))


def _padded(knots: Sequence[Sequence[float]], offsets: Sequence[Sequence[float]]) -> tuple[Array, Array]:
    """Rows of unequal length as (layers, K): knots far away and no bend at their end."""
    width = max([1, *map(len, knots)])
    tables = np.full((len(knots), width), _FAR), np.zeros((len(knots), width))
    for table, rows in zip(tables, (knots, offsets), strict=True):
        for place, row in enumerate(rows):
            table[place, : len(row)] = row
    return tables


@dataclass(frozen=True)
class WarmStart:
    """Where a search for parameters begins: what another one found, with other probes or another ridge."""

    found: Array
    ridge: float


class _Objective:
    """Penalized half squared residuals and their gradient.

    A layer has few distinct errors, one for each entry of its menu: terms are computed once for each, and a sparse matrix says which plan has
    which. With 803 layers and 500 probes that is ten times faster than terms for every plan.
    """

    def __init__(self, errors: Array, labels: Labels, priors: LayerPriors, ridge: float) -> None:
        n, self.n_layers = errors.shape
        distinct = [np.unique(column, return_inverse=True) for column in errors.T]
        values = np.concatenate([found for found, _ in distinct])
        self.layer = np.repeat(np.arange(self.n_layers), [len(found) for found, _ in distinct])
        self.logs = np.log(np.where(values > 0, values, 1.0)) - priors.log_errors[self.layer]
        self.present = values > 0
        first = np.cumsum([0, *(len(found) for found, _ in distinct[:-1])])
        columns = np.stack([inverse for _, inverse in distinct], axis=1) + first
        has = self.present[columns]
        pointers = np.concatenate([[0], has.sum(1).cumsum()])
        self.plans = csr_array((np.ones(pointers[-1]), columns[has], pointers), shape=(n, len(values)))
        self.by_value = self.plans.T.tocsr()
        self.labels, self.slopes, self.ridge = labels, priors.slopes, ridge
        self.relative = priors.relative_widths
        self.log_exponents = priors.log_exponents(PRIOR_EXPONENT)
        self.factor = SCORE_FACTOR if priors.learnt is None else 1.0
        self.target, self.weights = labels.target, labels.weights
        self.median = float(np.median(np.exp(self.target)))
        self.saturation = PRIOR_SATURATION * max(abs(labels.full_precision), labels.floor)
        self.scale = n**0.5

    def surrogate(self, u: Array, log_errors: Array) -> Additive:
        """Bent so that no term falls as the error grows."""
        theta, p, r, saturation, offsets = self.parameters(u)
        lines = theta[self.layer] + p[self.layer] * self.logs
        knots, rising = [], []
        for index in range(self.n_layers):
            own = (self.layer == index) & self.present  # errors ascend within a layer
            knots.append(self.logs[own] + log_errors[index])
            rising.append(np.maximum.accumulate(lines[own] + offsets[own]) - lines[own])
        return Additive(theta, p, r, saturation, log_errors, *_padded(knots, rising))

    def parameters(self, u: Array) -> tuple[Array, Array, float, float, Array]:
        """θ, p, r, κ and β of every distinct error from the numbers that are optimized: deviations from the priors in units of their penalties, and common ones of a scale with
        them. In θ and p themselves L-BFGS takes ten times as many steps.
        """
        deviations, steepness, (b, q, log_r, log_p, log_saturation), offsets = self._deviations(u)
        theta = b + (self.factor + q) * self.slopes + deviations * self.relative / self.ridge**0.5
        power, saturation = float(PRIOR_POWER * np.exp(log_r)), float(self.saturation * np.exp(np.clip(log_saturation, -30, 30)))
        return theta, np.exp(np.clip(self.log_exponents + log_p + steepness, -30, 30)), power, saturation, offsets / OFFSET_RIDGE**0.5

    def _deviations(self, u: Array) -> tuple[Array, Array, Array, Array]:
        """What the penalties are of: θ and log p from their priors, in units of their penalties; and b, and q, log r, log of the common p and log κ from theirs; and β in units
        of its penalty."""
        n = self.n_layers
        return u[:n], u[n : 2 * n], u[2 * n : 2 * n + 5] / self.scale, u[2 * n + 5 :]

    def start(self, warm_start: WarmStart | None = None) -> Array:
        """Every layer as its prior has it, at the probes' median; or a warm start, without its piecewise-linear offsets."""
        if warm_start is not None:
            n, offsets = self.n_layers, np.zeros(len(self.logs))
            return np.concatenate([warm_start.found[:n] * (self.ridge / warm_start.ridge) ** 0.5, warm_start.found[n : 2 * n + 5], offsets])
        level = np.log(self.median) - np.log(np.exp(self.factor * self.slopes).sum())
        return np.concatenate([np.zeros(2 * self.n_layers), np.array([level, 0.0, 0.0, 0.0, 0.0]) * self.scale, np.zeros(len(self.logs))])

    def __call__(self, u: Array) -> tuple[float, Array]:
        n, layer = self.n_layers, self.layer
        theta, p, r, saturation, offsets = self.parameters(u)
        deviations, steepness, common, scaled_offsets = self._deviations(u)
        terms = np.where(self.present, np.exp(np.clip(theta[layer] + p[layer] * self.logs + offsets, -60, 60)), 0.0)
        total = self.plans @ terms + _TINY
        with np.errstate(over="ignore"):
            excess = np.minimum(total * (1 + total / saturation) ** (r - 1), 1e30)
        residual = np.log(excess + self.labels.floor) - self.target
        beyond = np.sign(common) * np.maximum(np.abs(common) - WIDEST, 0)
        prior = CERTAINTY * common + BARRIER * beyond
        loss = 0.5 * (
            self.weights @ residual**2
            + deviations @ deviations
            + steepness @ steepness
            + CERTAINTY @ common**2
            + BARRIER * beyond @ beyond
            + scaled_offsets @ scaled_offsets
        )
        outer = self.weights * residual * excess / (excess + self.labels.floor)  # ∂loss/∂log excess
        above = total / (saturation + total)
        inner = terms * (self.by_value @ (outer * (1 + (r - 1) * above) / total))
        by_theta = np.bincount(layer, inner, n)
        by_log_p = np.bincount(layer, inner * self.logs, n) * p
        by_log_r, by_log_saturation = r * (outer @ np.log1p(total / saturation)), (1 - r) * (outer @ above)
        by_common = np.array([by_theta.sum(), by_theta @ self.slopes, by_log_r, by_log_p.sum(), by_log_saturation]) + prior
        gradient = [
            by_theta * self.relative / self.ridge**0.5 + deviations,
            by_log_p + steepness,
            by_common / self.scale,
            inner / OFFSET_RIDGE**0.5 + scaled_offsets,
        ]
        return float(loss), np.concatenate(gradient)


class _CommonAlone(_Objective):
    """Of the same loss, b, q, r, κ and the common p alone: every layer stays where its prior has it."""

    def whole(self, common: Array) -> Array:
        return np.concatenate([np.zeros(2 * self.n_layers), common, np.zeros(len(self.logs))])

    def of_common(self, common: Array) -> tuple[float, Array]:
        loss, gradient = self(self.whole(common))
        return loss, gradient[2 * self.n_layers : 2 * self.n_layers + len(common)]


def fit_common(errors: Array, labels: Labels, priors: LayerPriors) -> Additive:
    """What the priors say of layers, with the few numbers that all layers share fitted to probes."""
    objective = _CommonAlone(errors, labels, priors, 1.0)
    start = objective.start()[2 * objective.n_layers : 2 * objective.n_layers + len(CERTAINTY)]
    found = minimize(objective.of_common, start, jac=True, method="L-BFGS-B").x
    return objective.surrogate(objective.whole(found), priors.log_errors)


def fit_additive(errors: Array, labels: Labels, priors: LayerPriors, ridge: float, warm_start: WarmStart | None = None) -> Additive:
    """Fit to probes: errors (probes, layers)."""
    return fit_from(errors, labels, priors, ridge, warm_start)[0]


def fit_samples(
    errors: Array,
    labels: Labels,
    priors: LayerPriors,
    ridge: float,
    samples: Iterable[Any],
    warm_start: WarmStart | None = None,
    rng: np.random.Generator | None = None,
) -> Iterator[Additive]:
    """Fit to each of several samples of the probes (rows); all but the first start from what the first found.

    Args:
        rng: of priors that are drawn for all but the first, where widths are learnt: what no probe speaks of then differs by as much as is known of it.
    """
    for number, rows in enumerate(samples):
        drawn = priors.drawn(rng) if number and rng is not None else priors
        surrogate, found = fit_from(errors[rows], labels[rows], drawn, ridge, warm_start)
        warm_start = warm_start or found
        yield surrogate


def fit_from(
    errors: Array, labels: Labels, priors: LayerPriors, ridge: float, warm_start: WarmStart | None, n_steps: int = 1000
) -> tuple[Additive, WarmStart]:
    """Fit to probes, and where other fits may begin."""
    objective = _Objective(errors, labels, priors, ridge)
    options = {"maxiter": n_steps, "maxcor": 20, "ftol": 1e-7}
    found = minimize(objective, objective.start(warm_start), jac=True, method="L-BFGS-B", options=options).x
    return objective.surrogate(found, priors.log_errors), WarmStart(found, ridge)
