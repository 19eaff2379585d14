"""From formats to fidelity: an additive part over layers, and gradient-boosted trees for what it leaves.

    log(d − d₀ + floor) ≈ log(excess(errors) + floor) + trees(features)

d is the metric (the Fréchet distance by default), d₀ that of full precision on the same noise; excess is the additive model of additive.py, which comes
first and carries; xgboost starts from it (base_margin) and is monotone, with as many trees as held-out probes bear out, none included. Members
of the ensemble see bootstrap samples of the probes; their spread and the error on held-out probes together are the uncertainty.
Deviates from Qua²SeDiMo, whose predictor is a graph network over a hand-drawn graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from ...aq.plans.menu import Entry
from ...errors import DamagedError
from ...storage import read_json, write_json
from ..probing.probes import LayerTable, Probes
from .additive import CERTAINTY, PRIOR_POWER, PRIOR_SATURATION, RESIDUAL, Additive, Array, WarmStart, fit_samples
from .features import TreeFeatures
from .layer_priors import LayerPriors, LearntLayers
from .ridge import FEW, choose_ridge, usual_ridge
from .tree_files import trees_from_json, trees_to_json
from .trees import choose_number, fit_trees, inputs

ErrorOf = Callable[[str, Entry], float]  # layer name, entry → relative output error of the encoding
Choice = Mapping[str, Entry]
N_MEMBERS, N_DRAWS = 8, 32  # of an ensemble that was fitted, and of one that is drawn from a prior
COMMON_WIDTHS = RESIDUAL / CERTAINTY[[2, 4]] ** 0.5  # standard deviations of log r and log κ beforehand
LEAST_EXCESS = 1e-3  # of full precision's distance, below which a plan that nobody measured is as good as full precision
PREDICTOR_FILE = "additive.json"
SCALARS = {"full_precision": "whole", "floor": "floor", "residual": "misfit", "ridge": "ridge"}  # of a Predictor, and their names in files


@dataclass(frozen=True)
class Member:
    """One additive model and the trees that start from it; None: the additive model alone."""

    additive: Additive
    trees: xgboost.XGBRegressor | None

    def log_excess(self, errors: Array, rates: Array, features: TreeFeatures, floor: float) -> Array:
        """log(excess + floor), (n,)"""
        x, margin = inputs(self.additive, errors, rates, features, floor)
        return margin if self.trees is None else np.asarray(self.trees.predict(x, base_margin=margin), np.float64)


class Predictor:
    """An ensemble over one run's layers.

    Args:
        metric: whose values it predicts; lower is better.
        full_precision: the metric of full precision.
        floor: of Labels.
        residual: root mean square of log(excess + floor) on held-out probes.
        ridge: that the additive models were fitted with.
        error_of: looks the error of an entry up.
        notes: what a reader of its plans should know, a sentence each.
        tuned_steps: of tuning, after which plans cost what is predicted.
        by_prior: whether it was drawn from what other models taught, and no probe of this one taught it.
    """

    def __init__(
        self,
        metric: str,
        table: LayerTable,
        members: Sequence[Member],
        *,
        full_precision: float,
        floor: float,
        residual: float,
        ridge: float,
        error_of: ErrorOf,
        notes: Sequence[str] = (),
        tuned_steps: int = 0,
        by_prior: bool = False,
    ) -> None:
        self.metric, self.table, self.members, self.notes = metric, table, list(members), tuple(notes)
        self.full_precision, self.floor, self.residual, self.ridge, self.error_of = full_precision, floor, residual, ridge, error_of
        self.layers, self.tuned_steps, self.by_prior = list(table.names), tuned_steps, by_prior
        self._features = table.features
        self._index = {name: index for index, name in enumerate(self.layers)}
        self._errors: dict[tuple[str, str], float] = {}
        self._across: dict[str, Additive] = {}
        self._costs: dict[tuple[str, float], Array] = {}

    @classmethod
    def of_prior(
        cls, metric: str, table: LayerTable, *, full_precision: float, error_of: ErrorOf, seed: int = 0, notes: Sequence[str] = ()
    ) -> Predictor:
        """Without a probe: members are draws from what other models taught of the table's layers, which must be there.

        Args:
            full_precision: its metric, 1 where nothing was measured; all values are then multiples of it.
        """
        learnt = table.priors.learnt
        assert learnt is not None
        rng, members = np.random.default_rng([seed, 3]), []
        for _ in range(N_DRAWS):
            own = learnt.drawn(rng)
            level, *common = (learnt.level, *COMMON_WIDTHS) * rng.normal(size=1 + len(COMMON_WIDTHS))
            power, saturation = np.array([PRIOR_POWER, PRIOR_SATURATION]) * np.exp(common)
            slopes = own.log_slopes + level + np.log(full_precision)
            members.append(
                Member(
                    Additive.straight(slopes, own.exponents, float(power), float(saturation * full_precision), table.priors.log_errors),
                    None,
                )
            )
        floor, ridge = LEAST_EXCESS * full_precision, usual_ridge(table.priors)
        return cls(
            metric,
            table,
            members,
            full_precision=full_precision,
            floor=floor,
            residual=RESIDUAL,
            ridge=ridge,
            error_of=error_of,
            notes=notes,
            by_prior=True,
        )

    @classmethod
    def fit(
        cls, metric: str, probes: Probes, *, error_of: ErrorOf, seed: int = 0, n_members: int = N_MEMBERS, notes: Sequence[str] = ()
    ) -> Predictor:
        """Fit to probes whose values are of `metric`."""
        held_out = choose_ridge(probes.errors, probes.labels, probes.table.priors, seed)
        n_trees, residual = choose_number(held_out, probes, seed) if len(probes) >= FEW else (0, held_out.residual)
        return cls._of(
            metric,
            probes,
            held_out.ridge,
            n_trees,
            residual,
            held_out.warm_start,
            error_of=error_of,
            seed=seed,
            n_members=n_members,
            notes=notes,
        )

    def refit(self, probes: Probes, seed: int = 0) -> Predictor:
        """Fitted to other probes, with the ridge, the number of trees and the residual that this one has chosen."""
        how: dict[str, Any] = {"error_of": self.error_of, "seed": seed, "n_members": min(N_MEMBERS, len(self.members)), "notes": self.notes}
        return self._of(self.metric, probes, self.ridge, self.n_trees, self.residual, None, **how)

    @classmethod
    def _of(
        cls,
        metric: str,
        probes: Probes,
        ridge: float,
        n_trees: int,
        residual: float,
        warm_start: WarmStart | None,
        *,
        error_of: ErrorOf,
        seed: int,
        n_members: int,
        notes: Sequence[str] = (),
    ) -> Predictor:
        table, labels, n = probes.table, probes.labels, len(probes)
        # The first member sees every probe once, so that the ensemble of one is the plain fit.
        samples = [np.arange(n), *(np.random.default_rng([seed, member]).integers(n, size=n) for member in range(1, n_members))]
        rng = np.random.default_rng([seed, 4])
        surrogates = fit_samples(probes.errors, labels, table.priors, ridge, samples, warm_start, rng)
        members = [
            Member(surrogate, fit_trees(surrogate, probes[rows], n_trees, seed + member) if n_trees else None)
            for member, (rows, surrogate) in enumerate(zip(samples, surrogates, strict=True))
        ]
        return cls(
            metric,
            table,
            members,
            full_precision=probes.full_precision,
            floor=labels.floor,
            residual=residual,
            ridge=ridge,
            error_of=error_of,
            notes=notes,
            tuned_steps=probes.tuned_steps,
        )

    def without_trees(self) -> Predictor:
        """The additive models alone."""
        surrogates = [Member(member.additive, None) for member in self.members]
        numbers = {name: getattr(self, name) for name in SCALARS}
        how: dict[str, Any] = {"error_of": self.error_of, "notes": self.notes, "tuned_steps": self.tuned_steps}
        return Predictor(self.metric, self.table, surrogates, **how, **numbers)

    @property
    def n_trees(self) -> int:
        """Of each member."""
        trees = self.members[0].trees
        return 0 if trees is None else trees.get_booster().num_boosted_rounds()

    # -- predicting ------------------------------------------------------------------------------------------------------------------

    def _error(self, name: str, entry: Entry) -> float:
        key = (name, str(entry.format))
        if key not in self._errors:
            self._errors[key] = self.error_of(name, entry)
        return self._errors[key]

    def arrays(self, choices: Sequence[Choice]) -> tuple[Array, Array]:
        """Errors and rates of each layer, (n, layers) each."""
        errors = np.array([[self._error(name, choice[name]) for name in self.layers] for choice in choices])
        rates = np.array([[choice[name].rate for name in self.layers] for choice in choices])
        return errors, rates

    def predict_members(self, errors: Array, rates: Array) -> Array:
        """log(excess + floor) by each member, (members, n)."""
        return np.stack([member.log_excess(errors, rates, self._features, self.floor) for member in self.members])

    def predict_arrays(self, errors: Array, rates: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the metric, (n,) each; at d₀ the deviation is that of the ensemble and of the additive model's residual."""
        logs = self.predict_members(errors, rates)
        above = np.exp(logs.mean(0))
        spread = logs.var(0, ddof=1) if len(logs) > 1 else np.zeros(logs.shape[1])
        return self.full_precision + above - self.floor, above * np.sqrt(spread + self.residual**2)

    def predict(self, choices: Sequence[Choice]) -> tuple[Array, Array]:
        """Mean and standard deviation of the metric for each choice of entries, (n,) each."""
        return self.predict_arrays(*self.arrays(choices))

    def additive_cost(self, name: str, entry: Entry) -> float:
        """The term t_l of `entry` in the additive model, averaged over members: what the exact solver sums."""
        return float(self.member_costs(name, entry).mean())

    def member_costs(self, name: str, entry: Entry) -> Array:
        """The term t_l of `entry` by each member, (members,)."""
        error = self._error(name, entry)
        key = (name, error)
        if key not in self._costs:
            if name not in self._across:
                self._across[name] = Additive.across([member.additive for member in self.members], self._index[name])
            self._costs[key] = self._across[name].terms(np.full(len(self.members), error))
        return self._costs[key]

    def contributions(self, errors: Array, rates: Array) -> tuple[Array, Array]:
        """What each layer adds to log(excess + floor) in each plan, (n, layers), and the rest, (n,): together exactly the mean prediction.

        The additive model depends on the sum of terms alone, so that its Aumann–Shapley values are the terms' shares of it; to these come xgboost's own SHAP
        values (pred_contribs; Lundberg et al. 2018). Full precision is at log(floor).
        """
        layers, rest = np.zeros(errors.shape), np.full(len(errors), np.log(self.floor))
        for member in self.members:
            terms = member.additive.terms(errors)
            total = terms.sum(1)
            rise = np.log(member.additive.of_total(total) + self.floor) - np.log(self.floor)
            layers += terms * (rise / np.maximum(total, 1e-300))[:, None] / len(self.members)
            if member.trees is not None:
                matrix = xgboost.DMatrix(self._features(rates, errors, terms))  # without the margin: its part is known by layer
                shap = member.trees.get_booster().predict(matrix, pred_contribs=True)
                layers += self._features.by_layer(shap[:, :-1], terms) / len(self.members)
                rest += shap[:, -1] / len(self.members)
        return layers, rest

    # -- files -----------------------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """All that `load` needs."""
        members = [
            {**member.additive.to_json(), "trees": None if member.trees is None else trees_to_json(member.trees)} for member in self.members
        ]
        priors = self.table.priors
        table = {
            "names": self.layers,
            "roles": list(self.table.roles),
            "blocks": list(self.table.blocks),
            "log_errors": priors.log_errors.tolist(),
            "log_scores": priors.log_scores.tolist(),
            **({} if priors.learnt is None else {"learnt": priors.learnt.to_json()}),
        }
        numbers = {stored: getattr(self, name) for name, stored in SCALARS.items()}
        tuned = {"tuned_steps": self.tuned_steps} if self.tuned_steps else {}
        return {"metric": self.metric, **tuned, **numbers, "table": table, "members": members}

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Write additive.json, which holds the members' trees, too."""
        for earlier in folder.glob("trees*.ubj"):  # of version 0.1.0
            earlier.unlink()
        write_json(folder / PREDICTOR_FILE, "predictor", {**identity, **self.to_json()})

    @classmethod
    def load(cls, folder: Path, error_of: ErrorOf, owner: Mapping[str, str] | None = None) -> tuple[Predictor, dict[str, Any]]:
        """The predictor and the identity that it was saved with. Raises DamagedError for one that is damaged, or not of `owner`."""
        path = folder / PREDICTOR_FILE
        content = read_json(path, "predictor", owner=owner)
        table = content["table"]
        learnt = None if table.get("learnt") is None else LearntLayers.from_json(table["learnt"])
        priors = LayerPriors(np.array(table["log_errors"]), np.array(table["log_scores"]), learnt)
        layers = LayerTable(table["names"], table["roles"], table["blocks"], priors)
        n_features = len(layers.features.monotone)
        try:
            members = [
                Member(Additive.from_json(stored), None if stored["trees"] is None else trees_from_json(stored["trees"], n_features))
                for stored in content["members"]
            ]
        except DamagedError as error:
            raise DamagedError(f"{path}: {error}; run `sedaq fit` again") from error
        numbers = {name: content[stored] for name, stored in SCALARS.items()}
        tuned_steps = int(content.get("tuned_steps", 0))
        notes = [f"sensitivity was measured after {tuned_steps} steps of tuning"] if tuned_steps else []
        return cls(content["metric"], layers, members, error_of=error_of, notes=notes, tuned_steps=tuned_steps, **numbers), content
