"""Plans that are searched with a learnt prior and without a probe, beside those that a run's probes lead to: measured on noise that no choice was made on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transfer_models import LEARNT, TODAY, Measured

from sedaq.aq.formats import AS_IS, Format
from sedaq.aq.plans.plan import Plan
from sedaq.progress import track
from sedaq.search.bench import mean_worsening
from sedaq.search.find import find_plan
from sedaq.sensitivity.metrics.registry import DEFAULT
from sedaq.sensitivity.prior.model import LearntPrior
from sedaq.sensitivity.probing.measurer import Measurer, PlanTask
from sedaq.sensitivity.probing.prober import Measurement, Prober

BITS, SEEDS, N_IMAGES = 2.0, 3, 1000
UNIFORM = "uniform"
MOST = 36  # probes


def searched_plans(one: Measured, prior: LearntPrior, *, bits: float = BITS, n_probes: int = MOST) -> dict[tuple[str, int], Plan]:
    """By what the predictor goes by, and from how many probes; and the uniform plan of as many bytes at most."""
    run, plans = one.run, {}
    ways: list[tuple[str, LearntPrior | None, int]] = [(LEARNT, prior, 0), (LEARNT, prior, n_probes), (TODAY, None, n_probes)]
    for label, known, n in ways:
        how: dict[str, Any] = {"encoding": run.store.identity, "seed": run.settings.seed}
        found = find_plan(run.subject, run.menus, one.predictor(known, n), bits=bits, **how)
        plans[label, n] = found.plan
        plans.setdefault((UNIFORM, 0), found.uniform)
    return plans


def compare(
    one: Measured, prior: LearntPrior, *, bits: float = BITS, n_probes: int = MOST, n_images: int = N_IMAGES, seeds: int = SEEDS
) -> list[dict[str, Any]]:
    """A row a plan: its excess over full precision, and how much worse it is than the plan from the most probes, means over seeds with 95 % intervals of paired
    differences. Measurements are kept in the run.

    Args:
        seeds: noises, each of its own.
    """
    run, plans = one.run, searched_plans(one, prior, bits=bits, n_probes=n_probes)
    full = {layer.name: AS_IS for layer in run.subject.layers}
    formats: dict[tuple[str, int], Mapping[str, Format]] = {key: plan.formats for key, plan in plans.items()}
    distinct = {_named(plan): plan for plan in [full, *formats.values()]}
    purposes = [f"transfer {seed}" for seed in range(1, seeds + 1)]
    tasks = [PlanTask(plan, n_images, purpose) for purpose in purposes for plan in distinct.values()]
    prober = Prober(run, split="test")
    with Measurer(prober) as measurer:
        found = {
            (tasks[index].purpose, _named(tasks[index].formats)): measurement
            for index, measurement in track(measurer.measure(tasks), f"plans of {one.name}", len(tasks))
        }

    def measured(plan: Mapping[str, Format]) -> list[Measurement]:
        return [found[purpose, _named(plan)] for purpose in purposes]

    from_probes = measured(formats[LEARNT, n_probes])
    return [
        {
            "model": one.name,
            "plan": label,
            "n_probes": n,
            "bits_per_weight": plans[label, n].bits_per_weight,
            "excess": mean_worsening(prober, measured(plan), measured(full), DEFAULT),
            "over_probed": mean_worsening(prober, measured(plan), from_probes, DEFAULT),
        }
        for (label, n), plan in formats.items()
    ]


def _named(plan: Mapping[str, Format]) -> str:
    return " ".join(f"{name}={format}" for name, format in plan.items())
