"""A plan at once, for a model that nobody has probed: the formats that the heuristic names, every layer at the highest rate that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..aq.formats import Format
from ..aq.plans.menu import heuristic_menus
from ..aq.plans.plan import Plan
from ..aq.plans.store import EncodingStore
from ..errors import InputError
from ..models.calibration import MAX_IMAGES, steps_needed
from ..models.loading import load
from ..models.sampling import SamplingConfig
from ..models.subject import Subject
from ..sensitivity.settings import TEN_STEPS, Settings
from .building import build_problem
from .config import Budget, SearchConfig
from .constraints import Constraints, apply_constraints
from .uniform import uniform_choice

TAKEN = ("pin", "keep", "tie", "min_rate", "max_rate", "seed")  # of SearchConfig


def uniform_formats(subject: Subject, budget: Budget, config: SearchConfig | None = None) -> tuple[dict[str, Format], list[str]]:
    """The formats of `uniform_plan`, by layer, and a note on every constraint. Weights are not read."""
    config = config or SearchConfig()
    if budget.ms_per_step is not None or budget.pipeline_size is not None:
        raise InputError("`uniform`: it takes budgets of `bits` and `size`; others need a run that was probed")
    for option in fields(SearchConfig):
        if option.name not in TAKEN and getattr(config, option.name) != getattr(SearchConfig(), option.name):
            raise InputError(f"`{option.name}`: it is for a search; a uniform plan of a model that was never probed takes no such option")
    constraints = Constraints(config.pinned, config.keep, config.tie, config.min_rate, config.max_rate)
    menus, groups, notes = apply_constraints(subject, heuristic_menus(subject), constraints)
    problem = build_problem(subject, menus, lambda name, entry: 0.0, ties=groups).bounded(bits=budget.bits, size_bytes=budget.size_bytes)
    return problem.formats(uniform_choice(problem, seed=config.seed)), list(notes)


def uniform_plan(
    model: str | Path | Subject,
    budget: Budget,
    config: SearchConfig | None = None,
    *,
    sampling: SamplingConfig | None = None,
    exclude: Sequence[str] = (),
    components: Sequence[str] = (),
    device: str = "cpu",
) -> Plan:
    """The uniform plan within a budget of bits, of bytes or both. Nothing is sampled and nothing encoded: applying it does that.

    Args:
        config: what is pinned, kept, tied and bounded; its seed draws which layers get the bytes that are left.
        sampling: how `apply` samples to calibrate; 20 steps by default, and at least.

    Raises:
        InputError: for other budgets, and for one that cannot be met; the message states the smallest that can.

    Example:
        >>> uniform_plan("mnist-dit", Budget(bits=2.0)).bits_per_weight <= 2.0
        True
    """
    lines = None if sampling is None else sampling.prompt_lines
    model = str(model) if isinstance(model, Path) else model
    subject = load(model, prompts=lines, exclude=exclude, components=components, device=device, mapped=True)
    config = config or SearchConfig()
    chosen, notes = uniform_formats(subject, budget, config)
    sampling = sampling or TEN_STEPS
    settings = Settings(sampling=sampling, calibration_images=MAX_IMAGES, calibration_steps=steps_needed(subject, sampling))  # of `apply`
    store = EncodingStore(subject, Path(), calibration=settings.calibration, effort=settings.effort, seed=settings.seed)
    named = {"bits_per_weight": budget.bits, "size_bytes": budget.size_bytes}
    return Plan.of(
        subject,
        chosen,
        budget={name: value for name, value in named.items() if value is not None},
        encoding=store.identity,
        provenance={"solver": "uniform", "seed": config.seed, "undecided": {}, "notes": [*notes, "nothing was measured"]},
    )
