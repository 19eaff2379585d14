"""From a budget to a plan, and to the plans of a whole front: the work of `sedaq search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from ..aq.activations.quantizer import Activation
from ..aq.formats import Format
from ..aq.plans.menu import Entry
from ..aq.profiling.step_times import StepTimes
from ..errors import InputError
from ..models.subject import Subject
from ..progress import track
from .engine import Search, SearchResult
from .evaluate import Predictor
from .optuna_solver import fitting
from .problem import Choice
from .verify import Verification

FRONT_BITS = (1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0)
STARTS = 4  # plans of Optuna's front that each budget begins from


class Options(TypedDict, total=False):
    """Of find_plan and find_front; what is absent has the default in brackets.

    pins: format by glob of layer paths; keep: globs of layers left as they are; ties: globs of layers that choose together; min_rate, max_rate.
    solver: exact, optuna or auto (auto); seed (0); n_trials of Optuna (200).
    risk: standard deviations that predictions are raised by before plans are compared (1).
    storage: journal file or database URL that gets a copy of Optuna's studies.
    verification: samplings to compare plans by (none).
    entrants: plans of other searches that are measured, too; the first of them comes to the end of a race (none).
    encoding: effort, seed and calibration of the encodings, for the plan.
    times: what layers take of a sampling step, for a budget of milliseconds and to be stated in plans (none).
    activations: how the inputs of layers are rounded; of plans, and of what verification measures (not at all).
    """

    pins: Mapping[str, Format]
    keep: Sequence[str]
    ties: Sequence[str]
    min_rate: float | None
    max_rate: float | None
    solver: str
    seed: int
    n_trials: int
    risk: float
    storage: str | None
    verification: Verification | None
    entrants: Sequence[Mapping[str, Format]]
    encoding: Mapping[str, Any]
    times: StepTimes | None
    activations: Mapping[str, Activation]


def find_plan(
    subject: Subject,
    menus: Mapping[str, Sequence[Entry]],
    predictor: Predictor,
    *,
    bits: float | None = None,
    size_bytes: int | None = None,
    ms_per_step: float | None = None,
    **options: Unpack[Options],
) -> SearchResult:
    """The best plan for a budget; it is never above the budget, and has at most the bytes that the uniform plan (first order) uses.

    Args:
        bits, size_bytes, ms_per_step: bounds on total bits per weight, on the denoiser's file and on a sampling step; one or several.

    Raises:
        InputError: a budget that cannot be met (the message states the least reachable size), constraints that contradict each other.

    A verified plan is the one that is measured to be best (`verify.loss_and_distance`), and the uniform plan itself where none is better.
    """
    if bits is None and size_bytes is None and ms_per_step is None:
        raise InputError("no budget is given; pass `bits`, `size`, `ms_per_step` or several of them")
    if ms_per_step is not None and options.get("times") is None:
        raise InputError("a budget of milliseconds needs times=StepTimes.measure(subject, n_images)")
    search = Search.of(subject, menus, predictor, options)
    return search.find({"bits_per_weight": bits, "size_bytes": size_bytes, "ms_per_step": ms_per_step}, n_trials=search.n_trials)[0]


def find_front(
    subject: Subject,
    menus: Mapping[str, Sequence[Entry]],
    predictor: Predictor,
    *,
    bits: Sequence[float] = FRONT_BITS,
    **options: Unpack[Options],
) -> list[SearchResult]:
    """A plan for every budget of `bits` that can be reached, ascending.

    Optuna looks at the whole front once; each budget begins from the best of that and from the plan of the budget before. Budgets beyond the
    first that holds the greatest reachable plan are left out: they would repeat it.

    Raises:
        InputError: no budget can be reached; the message states the least reachable bits.
    """
    search = Search.of(subject, menus, predictor, options)
    lowest, highest = search.problem.min_bits * (1 - 1e-12), search.problem.max_bits
    reachable = [rate for rate in sorted(bits) if rate >= lowest and not any(highest <= other < rate for other in bits)]
    if not reachable:
        budgets = ", ".join(f"{rate:g}" for rate in bits)
        raise InputError(f"none of the budgets of {budgets} bits can be met; the least reachable is {search.problem.min_bits_text} bits")
    swept = search.sweep(len(reachable) * search.n_trials)
    found: list[SearchResult] = []
    starts: list[Choice] = []
    for rate in track(reachable, "search"):
        best = fitting(search.problem.bounded(bits=rate), swept, STARTS)
        plan, choice = search.find({"bits_per_weight": rate}, starts=[*starts, *best])
        found.append(plan)
        starts = [choice]
    return found
