"""What Qua²SeDiMo (Mills et al. 2025) found of sensitive layers, held against the layers of the corpus.

Effects are compared within a model, at the same rate and at equal output error:

    log(effect) = level of the rate + slope · log(output error) + γ · (whether the layer is of the kind)

for each model by itself; exp(γ) is the ratio. Effects near the noise of their measurement enter as differences (sensitivity/prior/response.py). The models' γ
count alike. Intervals of 90 % are by a bootstrap over models, and in each over layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from transfer_statistics import Array, estimate

from sedaq.sensitivity.prior.contributions import CLEAR
from sedaq.sensitivity.prior.response import Response

MIN_MODELS = 3  # of which a bootstrap over models says something
U_NETS = frozenset({"mnist-unet", "digits-sd", "cifar-unet", "cifar-conv"})
HOLDS, DOES_NOT, NOT_DECIDED = "holds", "does not hold", "not decided"
Rows = Callable[[pd.DataFrame], Any]  # a model's rows → which of them


@dataclass(frozen=True)
class Finding:
    """A claim that layers of a kind do more harm than others of their model.

    kind, others: which rows are compared; all that are not of the kind by default. among: of which models, "" for all, "U-Nets", or "transformers against
    U-Nets" for the ratio of both kinds of models' ratios. why_not: why nothing here can tell.
    """

    claim: str
    kind: Rows | None = None
    others: Rows | None = None
    among: str = ""
    why_not: str = ""


def of_role(*names: str) -> Rows:
    return lambda rows: rows["role"].isin(names)


BETWEEN = "transformers against U-Nets"
FINDINGS = (
    Finding("The time embedding is sensitive.", of_role("time embedding")),
    Finding("The last layer is sensitive.", of_role("output")),
    Finding("Skip layers are sensitive.", of_role("skip")),
    Finding("The last layer is more sensitive in transformers than in U-Nets.", of_role("output"), among=BETWEEN),
    Finding(
        "In U-Nets residual convolutions are more sensitive than layers of transformer blocks.",
        of_role("convolution"),
        of_role("query", "key", "value", "query, key and value", "attention output", "feed-forward in", "feed-forward out"),
        among="U-Nets",
    ),
    Finding(
        "U-Nets prefer uniform grids, transformers prefer clusters.",
        why_not="no menu has a uniform grid beside a sum of codewords of the same rate",
    ),
)


@dataclass(frozen=True)
class Ratio:
    """Of one model: γ, and draws of it over layers."""

    model: str
    value: float
    draws: Array
    n_layers: int  # of the kind


def log_ratio(rows: pd.DataFrame, is_kind: Array, *, at_equal_error: bool, n_draws: int = 1000, seed: int = 0) -> Ratio:
    """Of one model's rows, all of the kind or of the others.

    Args:
        at_equal_error: without it, the term in the output error is left out.
    """
    rates, level = np.unique(rows["rate"].to_numpy(float), return_inverse=True)
    log_errors = rows["output_error"].to_numpy(float)
    columns = [np.eye(len(rates))[level], is_kind[:, None].astype(float)]
    design = np.hstack([*columns, (log_errors - log_errors.mean())[:, None]] if at_equal_error else columns)
    response, place = Response.of(rows), len(rates)
    clear = response.effects[response.effects > 2 * response.noise]
    found = np.zeros(design.shape[1])
    found[:place] = np.log(np.median(clear)) if len(clear) else np.log(response.scale.mean())
    for _ in range(100):  # Gauss–Newton, with a certainty that is the prediction's
        logs = design @ found
        weighted = design * (response.certainty(logs) * response.slope(logs))[:, None]
        step = _solved(weighted.T @ (design * response.slope(logs)[:, None]), weighted.T @ response.residual(logs))
        found += np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-6:
            break
    # Draws of layers begin where all of them led to, and take one step.
    logs = design @ found
    slope, weighted = response.slope(logs), design * (response.certainty(logs) * response.slope(logs))[:, None]
    layers, layer = np.unique(rows["layer"].to_numpy(str), return_inverse=True)
    curvature = np.array([weighted[layer == one].T @ (design * slope[:, None])[layer == one] for one in range(len(layers))])
    pull = np.array([weighted[layer == one].T @ response.residual(logs)[layer == one] for one in range(len(layers))])
    times = _drawn(np.array([is_kind[layer == one].any() for one in range(len(layers))]), n_draws, seed)
    steps = _solved(np.tensordot(times, curvature, 1), times @ pull)
    return Ratio(str(rows["model"].iloc[0]), float(found[place]), found[place] + steps[:, place], len(set(layer[is_kind])))


def _drawn(is_kind: Array, n_draws: int, seed: int) -> Array:
    """(draws, layers) how often each layer is drawn; as many of the kind, and of the others, as there are."""
    rng, times = np.random.default_rng(seed), np.zeros((n_draws, len(is_kind)))
    for own in (np.flatnonzero(is_kind), np.flatnonzero(~is_kind)):
        times[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=n_draws)
    return times


def _solved(matrices: Array, vectors: Array) -> Array:
    """What no row says anything of stays where it is."""
    slightly = 1e-6 * np.eye(matrices.shape[-1]) * np.trace(matrices, axis1=-2, axis2=-1)[..., None, None]
    return np.asarray(np.linalg.solve(matrices + slightly, vectors[..., None])[..., 0])


def over_models(ratios: list[Ratio], seed: int = 0) -> tuple[float, Array]:
    """Mean γ, and draws of it over models."""
    rng = np.random.default_rng([seed, 1])
    draws = np.array([ratio.draws for ratio in ratios])  # (models, draws)
    n_draws = draws.shape[1]
    models = rng.integers(len(ratios), size=(n_draws, len(ratios)))
    within = rng.integers(n_draws, size=models.shape)
    return float(np.mean([ratio.value for ratio in ratios])), draws[models, within].mean(1)


def verdict(interval: list[float]) -> str:
    """A ratio holds a claim that is surely above 1, and refutes it where it is surely too small to be worth a word."""
    low, high = interval
    return HOLDS if low > 1 else DOES_NOT if high < CLEAR else NOT_DECIDED


def check(finding: Finding, table: pd.DataFrame, *, u_nets: Collection[str] = U_NETS, n_draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """A row for a result file: {claim, verdict, ratio, ratio_at_any_error, n_models, n_layers, models, why}."""
    row: dict[str, Any] = {"claim": finding.claim, "verdict": NOT_DECIDED, "ratio": None, "ratio_at_any_error": None}
    if finding.kind is None:
        return {**row, "n_models": 0, "n_layers": 0, "models": [], "why": finding.why_not}
    found = {equal: _ratios(finding, table, u_nets, equal, n_draws, seed) for equal in (True, False)}
    ratios = found[True]
    row |= {"n_models": len(ratios), "n_layers": sum(ratio.n_layers for ratio in ratios), "models": [_of_model(ratio) for ratio in ratios]}
    sides = [[ratio for ratio in ratios if (ratio.model in u_nets) == is_unet] for is_unet in (False, True)]
    if min(len(side) for side in (sides if finding.among == BETWEEN else [ratios])) < MIN_MODELS - (finding.among == BETWEEN):
        return {**row, "why": "too few models have such layers"}
    row["ratio"], row["ratio_at_any_error"] = (_together(finding, found[equal], u_nets, seed) for equal in (True, False))
    return {**row, "verdict": verdict(row["ratio"]["ci"]), "why": ""}


def _ratios(finding: Finding, table: pd.DataFrame, u_nets: Collection[str], at_equal_error: bool, n_draws: int, seed: int) -> list[Ratio]:
    """Of every model that has layers of both kinds."""
    assert finding.kind is not None
    ratios = []
    for number, (name, rows) in enumerate(table.groupby("model", sort=True)):
        if finding.among == "U-Nets" and name not in u_nets:
            continue
        is_kind = np.asarray(finding.kind(rows), dtype=bool)
        others = ~is_kind if finding.others is None else np.asarray(finding.others(rows), dtype=bool) & ~is_kind
        if is_kind.any() and others.any():
            own = is_kind | others
            ratios.append(log_ratio(rows[own], is_kind[own], at_equal_error=at_equal_error, n_draws=n_draws, seed=seed + number))
    return ratios


def _together(finding: Finding, ratios: list[Ratio], u_nets: Collection[str], seed: int) -> dict[str, Any] | None:
    if finding.among != BETWEEN:
        mean, draws = over_models(ratios, seed)
    else:
        (one, of_one), (other, of_other) = (
            over_models([ratio for ratio in ratios if (ratio.model in u_nets) == is_unet], seed + is_unet) for is_unet in (False, True)
        )
        mean, draws = one - other, of_one - of_other
    return estimate(float(np.exp(mean)), np.exp(draws))


def _of_model(ratio: Ratio) -> dict[str, Any]:
    return {"model": ratio.model, "n_layers": ratio.n_layers, **(estimate(float(np.exp(ratio.value)), np.exp(ratio.draws)) or {})}
