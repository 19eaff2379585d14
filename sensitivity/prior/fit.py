"""Learning a prior from a corpus, and what it is worth on models that were left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xgboost
from scipy.stats import t as student

from ...errors import InputError
from ...progress import track
from ..predictor.additive import Array
from ..predictor.tree_files import trees_from_json, trees_to_json
from .corpus import corpus_fingerprint
from .line import Line
from .model import Z90, LearntPrior, PriorMember, TreeSettings, rounded, spread
from .properties import as_numbers, columns
from .response import Response

N_MEMBERS = 5
MIN_MODELS = 2
COVERED = 0.9


@dataclass(frozen=True)
class HeldOutModels:
    """What priors without a model say of it, for every row of a corpus: logs, (members, rows). response: of all rows."""

    logs: Array
    response: Response

    @property
    def mean(self) -> Array:
        return np.asarray(self.logs.mean(0))

    @property
    def loss(self) -> float:
        """Of the mean prediction."""
        return self.response.loss(self.mean)


def check_models(table: pd.DataFrame, where: str) -> None:
    """Raise InputError for a corpus of too few models to leave one out."""
    n_models = table["fingerprint"].nunique()
    if n_models < MIN_MODELS:
        name = table["model"].iloc[0]
        raise InputError(f"{where}: holds one model only ({name}), so that none can be left out; name runs of two or more")


def fit_prior(table: pd.DataFrame, *, settings: TreeSettings | None = None, seed: int = 0, where: str = "the corpus") -> LearntPrior:
    """Learn from a corpus, leave one model out after the other for the widths, and say what it is worth.

    Raises:
        InputError: for a corpus of one model.
    """
    check_models(table, where)
    settings = settings or TreeSettings()
    held_out = leave_one_out(table, settings, seed=seed)
    level, residual, scale = widths(held_out)
    members = fit_members(table, settings, seed=seed)
    models, quality = sorted(set(table["model"])), judge(table, held_out)
    return LearntPrior(members, settings, level, residual, scale, models, corpus_fingerprint(table), quality)


def fit_members(table: pd.DataFrame, settings: TreeSettings, *, seed: int, n_members: int = N_MEMBERS) -> list[PriorMember]:
    """The first member sees all models alike, the others each with a weight drawn at random (a Bayesian bootstrap over models)."""
    response, x = Response.of(table), as_numbers(table)
    log_errors, log_scores = table["output_error"].to_numpy(float), table["gradient_score"].to_numpy(float)
    members = []
    for number in range(n_members):
        draws = np.random.default_rng([seed, number]).exponential(size=response.n_groups) if number else np.ones(response.n_groups)
        weights = response.weights * (draws / draws.mean())[response.groups]
        line = Line.fit(log_errors, log_scores, response, weights)
        trees = _grown(x, line(log_errors, log_scores), response, weights, settings, seed + number) if settings.n_trees else None
        members.append(PriorMember(line, trees))
    return members


def _grown(x: Array, start: Array, response: Response, weights: Array, settings: TreeSettings, seed: int) -> xgboost.XGBRegressor:
    """Trees as a file would hold them."""
    names = ("max_depth", "learning_rate", "subsample", "colsample_bytree", "reg_lambda", "min_child_weight")
    parameters = {
        **{name: getattr(settings, name) for name in names},
        "monotone_constraints": tuple(monotone for _, monotone in columns().values()),
        "base_score": 0.0,
        "disable_default_eval_metric": True,
        "nthread": 1,
        "seed": seed,
    }
    of_logs = response.objective(weights)
    matrix = xgboost.DMatrix(x, label=response.target, base_margin=start, nthread=1)
    booster = xgboost.train(parameters, matrix, settings.n_trees, obj=lambda logs, _: of_logs(logs, None))
    return trees_from_json(rounded(trees_to_json(booster)), x.shape[1], settings.max_depth)


# -- models left out ---------------------------------------------------------------------------------------------------------------------


def folds(groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every model the rows of the others, and its own."""
    return [(np.flatnonzero(groups != group), np.flatnonzero(groups == group)) for group in range(int(groups.max()) + 1)]


def leave_one_out(table: pd.DataFrame, settings: TreeSettings, *, seed: int, n_members: int = N_MEMBERS) -> HeldOutModels:
    """Every model by what the others teach."""
    response = Response.of(table)
    logs = np.empty((n_members, len(table)))
    for learnt, own in track(folds(response.groups), "models left out"):
        members = fit_members(table.iloc[learnt], settings, seed=seed, n_members=n_members)
        rows = table.iloc[own]
        x, log_errors, log_scores = as_numbers(rows), rows["output_error"].to_numpy(float), rows["gradient_score"].to_numpy(float)
        logs[:, own] = [member(x, log_errors, log_scores) for member in members]
    return HeldOutModels(logs, response)


def model_levels(held_out: HeldOutModels) -> Array:
    """(models,) by how much each lies above what is predicted of it, in logarithms."""
    found = []
    for group in range(held_out.response.n_groups):
        own = held_out.response.groups == group
        part, logs, level = held_out.response[own], held_out.mean[own], 0.0
        for _ in range(20):  # Gauss–Newton: the response is not straight in logarithms
            slope, certainty = part.slope(logs + level), part.certainty(logs + level)
            step = (certainty * slope) @ part.residual(logs + level) / max((certainty * slope**2).sum(), 1e-9)
            level += float(np.clip(step, -1, 1))
            if abs(step) < 1e-6:
                break
        found.append(level)
    return np.array(found)


def widths(held_out: HeldOutModels) -> tuple[float, float, float]:
    """Of a prior: `level`, `residual` and `scale`, by models left out.

    The level is known from as many values as there are models, so that a normal distribution of it would promise too much: it is widened to Student's. The
    scale is the least with which 90 % of all rows, those of every model alike, lie in their 90 % intervals about their model's level (conformal over models).
    """
    response = held_out.response
    levels = model_levels(held_out)
    n_models = len(levels)
    level = float(np.sqrt((levels**2).mean()) * student.ppf((1 + COVERED) / 2, n_models) / Z90)
    logs = held_out.mean + levels[response.groups]
    slope, noise, off = response.slope(logs), response.noise_variance(logs), response.residual(logs)
    weights = response.weights * response.certainty(logs)
    excess = float(weights @ (off**2 - noise)) / max(float(weights @ slope**2), 1e-9)
    residual = float(np.sqrt(max(excess, 1e-4)))
    own = np.hypot(spread_of_groups(held_out), residual)

    def covered(scale: float) -> float:
        inside = np.abs(off) <= Z90 * np.sqrt((scale * own * slope) ** 2 + noise)
        return float(response.weights @ inside / response.weights.sum())

    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if covered(middle) >= COVERED else (middle, high)
    return level, residual, max(high, 0.1)


def spread_of_groups(held_out: HeldOutModels) -> Array:
    """(rows,) what members differ by, about their levels for the row's own model."""
    found = np.empty(held_out.logs.shape[1])
    for group in range(held_out.response.n_groups):
        own = held_out.response.groups == group
        found[own] = spread(held_out.logs[:, own])
    return found


def intervals_hold(held_out: HeldOutModels) -> Array:
    """(rows,) whether a row's label lies in the 90 % interval whose widths are those of all other models."""
    response, inside = held_out.response, np.empty(len(held_out.response.effects), dtype=bool)
    for others, own in folds(response.groups):
        known = held_out.response[others]
        groups = pd.factorize(known.groups)[0]
        level, residual, scale = widths(HeldOutModels(held_out.logs[:, others], replace(known, groups=groups)))
        mean, part = held_out.mean[own], response[own]
        width = np.hypot(scale * np.hypot(spread(held_out.logs[:, own]), residual), level)
        inside[own] = np.abs(part.residual(mean)) <= Z90 * np.sqrt((width * part.slope(mean)) ** 2 + part.noise_variance(mean))
    return inside


# -- quality -----------------------------------------------------------------------------------------------------------------------------


def judge(table: pd.DataFrame, held_out: HeldOutModels) -> dict[str, Any]:
    """What a prior is worth on models left out: means over them, and each of them by name.

    spearman: rank correlation of predicted and measured effects over a model's rows, and `by_score` that of the gradient score alone, which is today's
    prior; log_ratio: median |log(predicted / measured)| of what is clear of noise, and about the model's level; covered: share of the labels in their 90 %
    intervals, whose widths are those of other models.
    """
    from ..predictor.cross_validation import spearman

    response, inside = held_out.response, intervals_hold(held_out) if held_out.response.n_groups > MIN_MODELS else None
    levels = model_levels(held_out)
    scores = table["gradient_score"].fillna(table["output_error"]).to_numpy(float)
    rows: dict[str, dict[str, float | None]] = {}
    for group in range(response.n_groups):
        own = response.groups == group
        part, mean = response[own], held_out.mean[own]
        clear = part.effects > 2 * part.noise
        ratios = mean[clear] - np.log(part.effects[clear])
        rows[str(table["model"][own].iloc[0])] = {
            "n_rows": int(own.sum()),
            "spearman": spearman(mean, part.effects),
            "by_score": spearman(scores[own], part.effects),
            "log_ratio": float(np.median(np.abs(ratios))) if clear.any() else None,
            "log_ratio_in_model": float(np.median(np.abs(ratios + levels[group]))) if clear.any() else None,
            "covered": None if inside is None else float(inside[own].mean()),
        }
    names = ("spearman", "by_score", "log_ratio", "log_ratio_in_model", "covered")
    return {**{name: _mean(row[name] for row in rows.values()) for name in names}, "models": rows}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
