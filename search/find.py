"""From a budget to a plan: the work of `sedaq search`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..aq.formats import Format
from ..aq.menu import Entry
from ..aq.plan import Plan
from ..errors import InputError, SedaqError
from ..models.subject import Subject
from ..progress import track
from .constraints import Constraints, apply_constraints
from .evaluate import Candidate, Evaluator, Predictor
from .problem import Choice, Problem, build_problem
from .solvers import N_TRIALS, SOLVERS, Solution, solve
from .uniform import uniform_choices
from .verify import Prober, check_verify, verify_candidates

FRONT_BITS = (1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0)


@dataclass(frozen=True)
class FoundPlan:
    """A plan within its budget, what is known of it, and the uniform plan that it was held against."""

    plan: Plan
    uniform: Plan
    predicted: dict[str, Any]  # {metric, value, std}
    uniform_predicted: dict[str, Any]  # mean over the five orders
    measured: dict[str, Any] | None  # {metrics: {name: {value, se, …}}, n_images, steps}; None without verification
    uniform_measured: dict[str, Any] | None
    difference_ci: tuple[float, float] | None  # 95 %, searched minus uniform, below zero is better; zeros where uniform is handed out
    solver: str

    def to_json(self) -> dict[str, Any]:
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
        }


@dataclass(frozen=True)
class _Search:
    """Everything that is the same for all budgets of a front."""

    subject: Subject
    predictor: Predictor
    problem: Problem  # without a budget
    notes: tuple[str, ...]
    solver: str
    seed: int
    verify: int
    prober: Prober[Any] | None
    n_images: int
    steps: int | None
    encoding: dict[str, Any]
    n_trials: int

    def plan(self, problem: Problem, choice: Choice, **details: Any) -> Plan:
        """The plan of a choice, its exact sizes held against the budgets."""
        plan = Plan.of(self.subject, problem.formats(choice), encoding=self.encoding, **details)
        counted = math.isclose(plan.bits_per_weight * problem.n_weights, 8 * problem.total_weight_bytes(choice))
        if not (counted and problem.fits(choice) and plan.size_bytes <= problem.total_file_bytes(choice)):
            raise SedaqError(f"a plan of {plan.size_bytes} bytes and {plan.bits_per_weight:.6g} bits is not what was searched; report this")
        return plan

    def predicted(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        mean, std = (float(np.mean([getattr(candidate, name) for candidate in candidates])) for name in ("mean", "std"))
        return {"metric": self.predictor.metric, "value": mean, "std": std}

    def solutions(self, problem: Problem, uniform: Choice, starts: Sequence[Choice]) -> Solution:
        """Solved at the bytes that the uniform plan really uses, so that no candidate's real file is larger than uniform's.

        File bytes in the problem are upper bounds; where a candidate with a smaller bound has the larger file, the limit goes down by the
        difference (some tens of bytes: digits of offsets).
        """
        weight_bytes = None if problem.max_weight_bytes is None else problem.total_weight_bytes(uniform)
        file_bytes = problem.total_file_bytes(uniform)
        real = self.plan(problem, uniform).size_bytes
        while True:
            tight = problem.within(max_weight_bytes=weight_bytes, max_file_bytes=file_bytes)
            usable = [start for start in starts if tight.fits(start)]
            solution = solve(tight, self.predictor, solver=self.solver, seed=self.seed, n_trials=self.n_trials, starts=usable)
            excess = self.plan(problem, np.array(solution.choice)).size_bytes - real
            if excess <= 0:
                return solution
            file_bytes -= excess
            if file_bytes < problem.least_file_bytes:
                alone = Evaluator(problem, self.predictor)([uniform], "uniform")[0]
                return replace(solution, choice=alone.choice, mean=alone.mean, std=alone.std, solver="uniform", candidates=(alone,))

    def provenance(self, problem: Problem, choice: Choice, solution: Solution, solver: str, notes: Sequence[str]) -> dict[str, Any]:
        above = [
            f"{name}: no format within {entry.rate:g} bits, takes {entry.format}"
            for name, entry in problem.entries(choice).items()
            if not entry.book and 8 * entry.size_bytes / self.subject.layer(name).n_weights > entry.rate + 1e-9
        ]
        found = {"solver": solver, "gap": solution.gap, "seed": self.seed, "trials": solution.n_trials}
        return {**found, "notes": [*self.notes, *above, *notes]}

    def find(self, problem: Problem, budget: dict[str, float], starts: Sequence[Choice] = ()) -> tuple[FoundPlan, Choice]:
        uniforms = uniform_choices(problem, seed=self.seed)
        uniform = uniforms[0]
        solution = self.solutions(problem, uniform, starts)
        evaluator = Evaluator(problem, self.predictor)
        choice, solver = np.array(solution.choice), solution.solver
        uniform_predicted = self.predicted(evaluator(uniforms, "uniform"))
        measured = uniform_measured = interval = None
        notes: list[str] = []
        if self.prober is not None and self.verify:
            rivals = self.rivals(problem, uniform, solution)
            choice, solver, measured, uniform_measured, interval = self._verified(problem, uniform, rivals, notes)
            if solver != "uniform" and np.array_equal(choice, solution.choice):
                solver = solution.solver
        predicted = self.predicted(evaluator([choice], solver))
        found = self.plan(
            problem,
            choice,
            budget=budget,
            predicted=predicted,
            measured=measured,
            provenance=self.provenance(problem, choice, solution, solver, notes),
        )
        uniform_plan = self.plan(problem, uniform, budget=budget, measured=uniform_measured)
        return FoundPlan(found, uniform_plan, predicted, uniform_predicted, measured, uniform_measured, interval, solver), choice

    def rivals(self, problem: Problem, uniform: Choice, solution: Solution) -> list[Candidate]:
        """The candidates to measure: distinct, other than uniform, their files no larger than its file."""
        real = self.plan(problem, uniform).size_bytes
        others = [candidate for candidate in solution.candidates if not np.array_equal(candidate.choice, uniform)]
        return [c for c in others if self.plan(problem, np.array(c.choice)).size_bytes <= real][: self.verify - 1]

    def _verified(self, problem: Problem, uniform: Choice, rivals: Sequence[Candidate], notes: list[str]) -> tuple[Any, ...]:
        """Choice, solver, measured, uniform_measured and interval of the difference, after measuring."""
        assert self.prober is not None
        formats = [problem.formats(np.array(rival.choice)) for rival in rivals] or [problem.formats(uniform)]
        verdict = verify_candidates(self.prober, formats, problem.formats(uniform), n_images=self.n_images, steps=self.steps)
        if verdict.winner is not None:
            rival = rivals[verdict.winner]
            return np.array(rival.choice), rival.found_by, verdict.measured, verdict.uniform_measured, verdict.difference[1:]
        value, low, high = verdict.difference
        why = f"the best of {len(rivals)} measured {value:+.4g} ({low:+.4g} to {high:+.4g})" if rivals else "the search found no other plan"
        notes.append(f"no searched plan is better than uniform, which is handed out: {why}")
        return uniform, "uniform", verdict.measured, verdict.uniform_measured, (0.0, 0.0)


def _prepare(
    subject: Subject,
    menus: Mapping[str, Sequence[Entry]],
    predictor: Predictor,
    *,
    pins: Mapping[str, Format],
    keep: Sequence[str],
    ties: Sequence[str],
    min_rate: float | None,
    max_rate: float | None,
    encoding: Mapping[str, Any] | None,
    **settings: Any,
) -> _Search:
    check_verify(settings["verify"], settings["prober"])
    if settings["solver"] not in SOLVERS:
        raise InputError(f"solver {settings['solver']!r} is unknown; choose one of {', '.join(SOLVERS)}")
    restricted, groups, notes = apply_constraints(subject, menus, Constraints(pins, keep, ties, min_rate, max_rate))
    problem = build_problem(subject, restricted, predictor.additive_cost, ties=groups)
    return _Search(subject, predictor, problem, tuple(notes), encoding=dict(encoding or {}), **settings)


def find_plan(
    subject: Subject,
    menus: Mapping[str, Sequence[Entry]],
    predictor: Predictor,
    *,
    bits: float | None = None,
    size_bytes: int | None = None,
    pins: Mapping[str, Format] = {},
    keep: Sequence[str] = (),
    ties: Sequence[str] = (),
    min_rate: float | None = None,
    max_rate: float | None = None,
    solver: str = "auto",
    seed: int = 0,
    verify: int = 0,
    prober: Prober[Any] | None = None,
    n_images: int = 512,
    steps: int | None = None,
    encoding: Mapping[str, Any] | None = None,
    n_trials: int = N_TRIALS,
) -> FoundPlan:
    """The best plan for a budget; it is never above the budget, and has at most the bytes that the uniform plan (first order) uses.

    Args:
        bits, size_bytes: bounds on total bits per weight and on the denoiser's file; either or both.
        pins, keep, ties, min_rate, max_rate: see Constraints.
        solver: exact, optuna or auto.
        verify: samplings at most, the uniform plan's included; 0: none, else at least 2.
        n_images, steps: of each sampling; steps None: the subject's own.
        encoding: effort, seed and calibration of the encodings, for the plan.

    Raises:
        InputError: a budget that cannot be met (the message states the least reachable size), constraints that contradict each other.

    A verified plan is the candidate with the least measured difference to uniform, and the uniform plan itself where none is below zero.
    """
    if bits is None and size_bytes is None:
        raise InputError("no budget is given; pass --bits, --size or both")
    search = _prepare(
        subject,
        menus,
        predictor,
        pins=pins,
        keep=keep,
        ties=ties,
        min_rate=min_rate,
        max_rate=max_rate,
        encoding=encoding,
        solver=solver,
        seed=seed,
        verify=verify,
        prober=prober,
        n_images=n_images,
        steps=steps,
        n_trials=n_trials,
    )
    problem = search.problem.bounded(bits=bits, size_bytes=size_bytes)
    budget = {name: value for name, value in (("bits_per_weight", bits), ("size_bytes", size_bytes)) if value is not None}
    return search.find(problem, budget)[0]


def find_front(
    subject: Subject,
    menus: Mapping[str, Sequence[Entry]],
    predictor: Predictor,
    *,
    bits: Sequence[float] = FRONT_BITS,
    pins: Mapping[str, Format] = {},
    keep: Sequence[str] = (),
    ties: Sequence[str] = (),
    min_rate: float | None = None,
    max_rate: float | None = None,
    solver: str = "auto",
    seed: int = 0,
    verify: int = 0,
    prober: Prober[Any] | None = None,
    n_images: int = 512,
    steps: int | None = None,
    encoding: Mapping[str, Any] | None = None,
    n_trials: int = N_TRIALS,
) -> list[FoundPlan]:
    """A plan for every budget of `bits` that can be reached, ascending; each search starts from the plan of the budget before as well.

    Arguments as in `find_plan`. Budgets beyond the first that holds the greatest reachable plan are left out: they would repeat it.

    Raises:
        InputError: no budget can be reached; the message states the least reachable bits.
    """
    search = _prepare(
        subject,
        menus,
        predictor,
        pins=pins,
        keep=keep,
        ties=ties,
        min_rate=min_rate,
        max_rate=max_rate,
        encoding=encoding,
        solver=solver,
        seed=seed,
        verify=verify,
        prober=prober,
        n_images=n_images,
        steps=steps,
        n_trials=n_trials,
    )
    least, whole = search.problem.least_bits * (1 - 1e-12), search.problem.greatest_bits
    reachable = [rate for rate in sorted(bits) if rate >= least and not any(whole <= other < rate for other in bits)]
    if not reachable:
        budgets = ", ".join(f"{rate:g}" for rate in bits)
        raise InputError(f"none of the budgets of {budgets} bits can be met; the least reachable is {search.problem.least_bits_text} bits")
    found: list[FoundPlan] = []
    starts: list[Choice] = []
    for rate in track(reachable, "search"):
        plan, choice = search.find(search.problem.bounded(bits=rate), {"bits_per_weight": rate}, starts)
        found.append(plan)
        starts = [choice]
    return found
