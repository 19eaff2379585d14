"""One search: a subject, its constraints and a predictor; plans for any budget, verified or not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..aq.activations.quantizer import Activation
from ..aq.formats import Format
from ..aq.plans.menu import Entry
from ..aq.plans.plan import Plan
from ..aq.profiling.step_times import StepTimes
from ..errors import SedaqError
from ..models.subject import Subject
from ..sensitivity.metrics.frechet import NotFiniteError
from ..sensitivity.metrics.registry import metric_of
from . import optuna_solver
from .budgets import Budgets
from .building import build_problem
from .config import N_TRIALS, RISK
from .constraints import Constraints, apply_constraints
from .evaluate import Candidate, Evaluator, Predictor
from .halving import halve
from .margins import optima, undecided
from .optuna_solver import Keep
from .problem import Choice, Problem
from .solvers import Effort, Solution, check_solver, solve
from .uniform import uniform_choices
from .verify import Verification, loss_and_distance, overflowed

RUINED = "the plan is ruined: its images are further from full precision's than these are from each other; allow more bits"
COUNTED = "what counts is a loss beside full precision that is clear of noise, and then how near images are to full precision's"
ENTRANT = "other search"  # what is said of a plan's origin
ROUND = 4  # plans that are measured before the predictor is refitted to them
Budget = Mapping[str, float | None]  # bits_per_weight, size_bytes, ms_per_step; None: no such bound


@dataclass(frozen=True)
class SearchResult:
    """A plan within its budget, what is known of it, and the uniform plan that it was held against."""

    plan: Plan
    uniform: Plan
    predicted: dict[str, Any]  # {metric, value, std} in the metric's own direction, and ms_per_step where times are known
    uniform_predicted: dict[str, Any]  # mean over the five orders
    measured: dict[str, Any] | None  # {metrics: {name: {value, se, …}}, n_images, steps}; None without verification
    uniform_measured: dict[str, Any] | None
    difference_ci: (
        tuple[float, float] | None
    )  # 95 %, by how much searched is worse than uniform in the metric's unit; zeros where uniform is handed out
    solver: str

    def to_dict(self) -> dict[str, Any]:
        """What the verb `search` prints as JSON."""
        return {
            "bits_per_weight": self.plan.bits_per_weight,
            "size_bytes": self.plan.size_bytes,
            "predicted": self.predicted,
            "uniform_predicted": self.uniform_predicted,
            "uniform_bits_per_weight": self.uniform.bits_per_weight,
            "measured": self.measured,
            "uniform_measured": self.uniform_measured,
            "difference_ci": None if self.difference_ci is None else list(self.difference_ci),
            "solver": self.solver,
            "plan": self.plan.to_json(),
            "uniform_plan": self.uniform.to_json(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SearchResult:
        """The inverse of `to_dict`."""
        plan, uniform = (Plan.from_json(content[name], name) for name in ("plan", "uniform_plan"))
        same = ("predicted", "uniform_predicted", "measured", "uniform_measured", "solver")
        interval = content["difference_ci"]
        return cls(
            plan, uniform, difference_ci=None if interval is None else (interval[0], interval[1]), **{name: content[name] for name in same}
        )


@dataclass(frozen=True)
class _Verdict:
    """What is handed out, the uniform plan where measuring found none better; and what was measured, if anything was."""

    choice: Choice
    solver: str
    measured: dict[str, Any] | None = None
    uniform_measured: dict[str, Any] | None = None
    interval: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """Everything that is the same for all budgets."""

    subject: Subject
    predictor: Predictor
    menus: Mapping[str, Sequence[Entry]]  # constraints applied
    ties: Sequence[tuple[str, ...]]
    notes: tuple[str, ...]
    encoding: Mapping[str, Any]
    solver: str = "auto"
    seed: int = 0
    n_trials: int = N_TRIALS
    risk: float = RISK
    storage: str | None = None
    verification: Verification | None = None
    entrants: Sequence[Mapping[str, Format]] = ()
    times: StepTimes | None = None
    activations: Mapping[str, Activation] = field(default_factory=dict)

    @classmethod
    def of(cls, subject: Subject, menus: Mapping[str, Sequence[Entry]], predictor: Predictor, options: Mapping[str, Any]) -> Search:
        """From find_plan's options. Raises InputError for those that contradict each other."""
        settings = dict(options)
        check_solver(settings.get("solver", cls.solver))
        of_layers = {part.name: settings.pop(part.name) for part in fields(Constraints) if part.name in settings}
        restricted, groups, notes = apply_constraints(subject, menus, Constraints(**of_layers))
        notes = [*notes, *getattr(predictor, "notes", ())]
        return cls(subject, predictor, restricted, groups, tuple(notes), settings.pop("encoding", {}), **settings)

    @cached_property
    def problem(self) -> Problem:
        """Without a budget."""
        return build_problem(
            self.subject, self.menus, self.predictor.additive_cost, ties=self.ties, times=self.times, activations=self.activations
        )

    def sweep(self, n_trials: int) -> list[Candidate]:
        """What Optuna sees of the whole front; nothing where only the exact solver was asked for."""
        if self.solver == "exact" or not n_trials:
            return []
        evaluator = Evaluator(self.problem, self.predictor, self.risk)
        return optuna_solver.sweep(evaluator, seed=self.seed, n_trials=n_trials, keep=self._keep("front"))

    def find(self, budget: Budget, *, n_trials: int = 0, starts: Sequence[Choice] = ()) -> tuple[SearchResult, Choice]:
        """The best plan for a budget, with `n_trials` of Optuna for it alone."""
        size_bytes = budget.get("size_bytes")
        problem = self.problem.bounded(
            bits=budget.get("bits_per_weight"),
            size_bytes=None if size_bytes is None else int(size_bytes),
            ms_per_step=budget.get("ms_per_step"),
        )
        uniforms = uniform_choices(problem, seed=self.seed)
        uniform = uniforms[0]
        solution = self._solve(problem, uniform, n_trials, starts)
        verdict = _Verdict(np.array(solution.best.choice), solution.solver)
        if self.verification is not None:
            verdict = self._verified(self.verification, problem, uniform, solution)
        choice, solver = verdict.choice, verdict.solver
        evaluator = Evaluator(problem, self.predictor, self.risk)
        predicted = self._predicted(evaluator([choice], solver)) | self._ms_per_step(problem, choice)
        named = {name: value for name, value in budget.items() if value is not None}
        notes = [*verdict.notes, *([RUINED] if verdict.measured and verdict.measured.get("ruined") else [])]
        provenance = self._provenance(problem, choice, solution, solver, notes)
        plan = self._plan(problem, choice, budget=named, predicted=predicted, measured=verdict.measured, provenance=provenance)
        uniform_plan = self._plan(problem, uniform, budget=named, measured=verdict.uniform_measured)
        found = SearchResult(
            plan,
            uniform_plan,
            predicted,
            self._predicted(evaluator(uniforms, "uniform")) | self._ms_per_step(problem, uniform),
            verdict.measured,
            verdict.uniform_measured,
            verdict.interval,
            solver,
        )
        return found, choice

    # -- solving ---------------------------------------------------------------------------------------------------------------------

    def _solve(self, problem: Problem, uniform: Choice, n_trials: int, starts: Sequence[Choice]) -> Solution:
        """Solved at the bytes that the uniform plan really uses, so that no candidate's real file is larger than uniform's.

        File bytes in the problem are upper bounds; where a candidate with a smaller bound has the larger file, the limit goes down by the
        difference (some tens of bytes: digits of offsets).
        """
        budgets = self._bytes_of(problem, uniform)
        real = self._plan(problem, uniform).size_bytes
        name = f"{8 * problem.total('weight_bytes', uniform) / problem.n_weights:.4g} bits"
        while True:
            tight = problem.within(budgets)
            effort = Effort(self.seed, n_trials, [start for start in starts if tight.fits(start)], self._keep(name))
            solution = solve(Evaluator(tight, self.predictor, self.risk), solver=self.solver, effort=effort)
            excess = self._plan(problem, np.array(solution.best.choice)).size_bytes - real
            if excess <= 0:
                return solution
            budgets = replace(budgets, file_bytes=tight.budgets.given["file_bytes"] - excess)
            if budgets.given["file_bytes"] < problem.minimum("file_bytes"):
                alone = Evaluator(problem, self.predictor, self.risk)([uniform], "uniform")[0]
                return replace(solution, best=alone, candidates=(alone,))

    def _bytes_of(self, problem: Problem, uniform: Choice) -> Budgets:
        return problem.like(uniform, *(("file_bytes",) if problem.budgets.weight_bytes is None else ("weight_bytes", "file_bytes")))

    def _keep(self, name: str) -> Keep | None:
        return optuna_solver.copy_to(self.storage, f"{self.subject.name}, {name}, seed {self.seed}") if self.storage else None

    def _plan(self, problem: Problem, choice: Choice, **details: Any) -> Plan:
        """The plan of a choice, its exact sizes held against the budgets."""
        plan = Plan.of(self.subject, problem.formats(choice), encoding=dict(self.encoding), activations=self.activations, **details)
        counted = math.isclose(plan.bits_per_weight * problem.n_weights, 8 * problem.total("weight_bytes", choice))
        if not (counted and problem.fits(choice) and plan.size_bytes <= problem.total("file_bytes", choice)):
            raise SedaqError(f"a plan of {plan.size_bytes} bytes and {plan.bits_per_weight:.6g} bits is not what was searched; report this")
        return plan

    def _predicted(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        mean, std = (float(np.mean([getattr(candidate, name) for candidate in candidates])) for name in ("mean", "std"))
        sign = metric_of(self.predictor.metric).sign
        full = getattr(self.predictor, "full_precision", None)
        whole = {} if full is None else {"full_precision": sign * float(full)}
        return {"metric": self.predictor.metric, "value": sign * mean, "std": std, **whole}

    def _ms_per_step(self, problem: Problem, choice: Choice) -> dict[str, float]:
        return {} if self.times is None else {"ms_per_step": problem.total("nanoseconds", choice) / 1e6}

    def _provenance(self, problem: Problem, choice: Choice, solution: Solution, solver: str, notes: Sequence[str]) -> dict[str, Any]:
        above = [
            f"{name}: no format within {entry.rate:g} bits, takes {entry.format}"
            for name, entry in problem.entries(choice).items()
            if entry.format.kind == "additive"
            and not entry.book
            and 8 * entry.size_bytes / self.subject.layer(name).n_weights > entry.rate + 1e-9
        ]
        return {
            "solver": solver,
            "gap": solution.gap,
            "seed": self.seed,
            "trials": solution.n_trials,
            "gains": solution.gains,
            "risk": self.risk,
            "undecided": undecided(problem, choice, self.predictor.member_costs),
            "notes": [*self.notes, *above, *notes],
        }

    # -- measuring -------------------------------------------------------------------------------------------------------------------

    def _verified(self, verification: Verification, problem: Problem, uniform: Choice, solution: Solution) -> _Verdict:
        """Measure uniform and plans that may be the best; after every round teach the predictor what was measured, and search again.

        The interval is of the chosen plan on the images that chose it, so that it is a little optimistic; `sedaq evaluate` and `sedaq bench
        search` give figures on other noise.
        """
        max_others = verification.n - 1
        contenders = self._contenders(problem, uniform, solution)
        wanted = contenders[: min(max_others, ROUND)]
        reference, *found = verification.measure([problem.formats(choice) for choice in (uniform, *_choices(wanted))])
        if overflowed(reference, self.predictor.metric):
            bits = 8 * problem.total("weight_bytes", uniform) / problem.n_weights
            raise NotFiniteError(
                f"verification: the uniform plan of {bits:.4g} bits, which others are compared with, makes the model overflow; "
                "search for more bits, or without `verify`"
            )
        measured: dict[Candidate, Any] = dict(zip(wanted, found, strict=True))
        while len(measured) < max_others:
            if verification.refit is not None:
                refitted = replace(self, predictor=verification.refit([reference, *measured.values()]))
                again = refitted.problem.within(problem.budgets)
                contenders = refitted._contenders(again, uniform, refitted._solve(again, uniform, 0, _choices(measured)))
            known = {contender.choice for contender in measured}
            wanted = [contender for contender in contenders if contender.choice not in known][: min(max_others - len(measured), ROUND)]
            if not wanted:
                break
            measured |= zip(wanted, verification.measure([problem.formats(choice) for choice in _choices(wanted)]), strict=True)
        if len(verification.rungs) > 1:
            plans = {contender: problem.formats(np.array(contender.choice)) for contender in measured}
            measured = dict(sorted(measured.items(), key=lambda item: item[0].found_by != ENTRANT))  # the first of a race comes to its end
            measured = halve(
                verification,
                plans,
                measured,
                self.predictor.metric,
                self._keep(f"verification at {problem.text('weight_bytes', problem.total('weight_bytes', uniform))}"),
            )
            (reference,) = verification.measure([problem.formats(uniform)], verification.rungs[-1])
        return self._verdict(verification, uniform, reference, measured)

    def _verdict(self, verification: Verification, uniform: Choice, reference: Any, measured: Mapping[Candidate, Any]) -> _Verdict:
        """The best of the uniform plan, whose measurement is `reference`, and the others."""
        uniform_measured, note = verification.content(reference), "no searched plan is better than uniform, which is handed out"
        if not measured:
            note = f"{note}: the search found no other plan"
            return _Verdict(uniform, "uniform", uniform_measured, uniform_measured, (0.0, 0.0), (note,))
        metric = self.predictor.metric
        best = min(measured, key=lambda contender: loss_and_distance(measured[contender], metric))
        if overflowed(measured[best], metric):
            note = f"{note}: under all {len(measured)} others the model overflows"
            return _Verdict(uniform, "uniform", uniform_measured, uniform_measured, (0.0, 0.0), (note,))
        value, low, high = verification.prober.worsening(measured[best], reference, metric)
        size, *interval = (value, low, high) if value > 0 else (-value, -high, -low)
        difference = f"{size:.4g} ({interval[0]:.4g} to {interval[1]:.4g})"
        if not loss_and_distance(measured[best], metric) < loss_and_distance(reference, metric):
            how = f"worse by {difference}" if value > 0 else f"better by {difference}, which is not clear of noise"
            note = f"{note}: the best of {len(measured)} is {how}"
            return _Verdict(uniform, "uniform", uniform_measured, uniform_measured, (0.0, 0.0), (note,))
        notes: tuple[str, ...] = ()
        if value > 0:
            notes = (f"by {metric} alone uniform is better by {difference}; {COUNTED}",)
        return _Verdict(np.array(best.choice), best.found_by, verification.content(measured[best]), uniform_measured, (low, high), notes)

    def _contenders(self, problem: Problem, uniform: Choice, solution: Solution) -> list[Candidate]:
        """The candidates to measure: the best, those of other searches, then those that members of the ensemble would choose, then the next by score;
        distinct, other than uniform, their files no larger than its file."""
        tight = problem.within(self._bytes_of(problem, uniform))
        evaluator = Evaluator(tight, self.predictor, self.risk)
        entrants = evaluator([choice for choice in map(tight.choice_of, self.entrants) if tight.fits(choice)], ENTRANT)
        sampled = evaluator(optima(tight, self.predictor.member_costs), "ensemble")
        distinct: dict[tuple[int, ...], Candidate] = {}
        for candidate in (solution.best, *entrants, *sampled, *solution.candidates):
            distinct.setdefault(candidate.choice, candidate)
        distinct.pop(tuple(map(int, uniform)), None)
        real = self._plan(problem, uniform).size_bytes
        return [contender for contender in distinct.values() if self._plan(problem, np.array(contender.choice)).size_bytes <= real]


def _choices(candidates: Iterable[Candidate]) -> list[Choice]:
    return [np.array(candidate.choice) for candidate in candidates]
