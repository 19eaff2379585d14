"""Searched plans against what others do, at equal bytes with the same encodings, on noise that no choice was made on: `sedaq bench search`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from ..aq.formats import AS_IS, Format
from ..aq.plans.menu import Entry
from ..aq.plans.plan import Plan
from ..errors import DamagedError, InputError
from ..progress import track
from ..runtime.owner import owner
from ..runtime.status import telling
from ..sensitivity.metrics.registry import DEFAULT, metric_of
from ..sensitivity.predictor.fitting import load_predictor
from ..sensitivity.probing.layer_statistics import LayerStatistics
from ..sensitivity.probing.measurer import Measurer, PlanTask
from ..sensitivity.probing.prober import Measurement, Prober
from ..sensitivity.probing.probes import Probes, excess, read_probes
from ..sensitivity.run import Run, probe_journal
from ..storage import read_json, write_json
from .baselines import BASELINES, UNIFORM, BaselineInputs, Cost, mean_contributions, random_choice
from .config import SearchConfig
from .engine import Search
from .problem import Choice, Problem
from .uniform import uniform_choice
from .verb import verification_by

log = logging.getLogger("sedaq")
SEARCHED, RANDOM = "searched", "best of random"
SEEDS = 3


@dataclass(frozen=True)
class Comparison:
    """The plans of every method at one budget, and the searched plan's own verification."""

    bits: float
    plans: Mapping[str, dict[str, Format]]
    solver: str


@telling("bench")
def bench_search(
    run: Run,
    *,
    bits: Sequence[float],
    methods: Sequence[str] = tuple(BASELINES),
    n_images: int = 2000,
    steps: int = 20,
    verify: int = 8,
    n_random: int = 0,
    executor: str = "serial",
) -> list[dict[str, Any]]:
    """One row a budget and method; the run keeps them in contest.json.

    Args:
        methods: what the searched plan is held against, names of BASELINES; uniform always is.
        n_images, steps: of each of the SEEDS final samplings; references are the test set's for shipped subjects.
        verify: samplings that the searched plan may take, on other noise. n_random: random plans measured on that noise, the best of which is a
            method of its own; 0: none.
        executor: where plans are measured, as in `search_run`.

    Returns:
        {bits, method, bits_per_weight, size_bytes, METRIC, excess: {value, ci}, over_uniform: {value, ci}, over_searched: {value, ci}, solver}, where
        METRIC is the name of the metric that the predictor was fitted to: its mean over the seeds, and how much worse it is than full precision,
        uniform and searched on equal noise, with 95 % intervals.

    Raises:
        InputError: a method that is unknown.
    """
    unknown = [name for name in methods if name not in BASELINES]
    if unknown:
        raise InputError(f"method {unknown[0]!r} is unknown; choose among {', '.join(BASELINES)}")
    predictor = load_predictor(run)
    metric, inputs = predictor.metric, baseline_inputs(run, predictor.metric)
    with Measurer(Prober(run), executor) as measurer:
        verifying = verification_by(measurer, predictor, SearchConfig(verify=verify), learning=True) if verify else None
        options = {"verification": verifying, "encoding": run.store.identity, "seed": run.settings.seed}
        search = Search.of(run.subject, run.menus, predictor, options)
        comparisons = [
            compare_methods(run, search, inputs, rate, methods, n_random, measurer) for rate in track(list(bits), "plans of each method")
        ]
    full = {layer.name: AS_IS for layer in run.subject.layers}
    wanted = [full, *(plan for comparison in comparisons for plan in comparison.plans.values())]
    purposes = [f"bench {seed}" for seed in range(1, SEEDS + 1)]
    prober = Prober(run, split="test")
    distinct = {_named(plan): plan for plan in wanted}
    tasks = [PlanTask(plan, n_images, purpose, steps) for purpose in purposes for plan in distinct.values()]
    with Measurer(prober, executor) as measurer:
        measured_tasks = track(measurer.measure(tasks), "measuring", len(tasks))
        found = {(tasks[index].purpose, _named(tasks[index].formats)): measurement for index, measurement in measured_tasks}

    def row(one: Comparison, method: str, plan: dict[str, Format]) -> dict[str, Any]:
        measured = {name: [found[purpose, _named(other)] for purpose in purposes] for name, other in _against(plan, full, one)}
        own, sized = measured.pop("own"), Plan.of(run.subject, plan, encoding=run.store.identity)
        return {
            "bits": one.bits,
            "method": method,
            "bits_per_weight": sized.bits_per_weight,
            "size_bytes": sized.size_bytes,
            metric: float(np.mean([m.metrics[metric].value for m in own])),
            **{name: mean_worsening(prober, own, others, metric) for name, others in measured.items()},
            "solver": one.solver if method == SEARCHED else None,
        }

    rows = [row(one, method, plan) for one in comparisons for method, plan in one.plans.items()]
    _keep(run.folder / "contest.json", rows, {"n_images": n_images, "steps": steps, "seeds": SEEDS, "metric": metric})
    return rows


def _keep(path: Path, rows: list[dict[str, Any]], conditions: dict[str, Any]) -> None:
    """For the report: rows of other budgets and methods that were measured alike stay."""
    own, earlier = owner(path.parent), {}
    try:
        earlier = read_json(path, "contest", owner=own) if path.exists() else {}
    except DamagedError as error:
        log.warning("%s (rows of other budgets are lost)", error)
    kept = {
        (row["bits"], row["method"]): row for row in earlier.get("rows", ()) if {"metric": DEFAULT, **earlier["conditions"]} == conditions
    }
    kept |= {(row["bits"], row["method"]): row for row in rows}
    write_json(path, "contest", {"rows": sorted(kept.values(), key=lambda row: float(row["bits"])), "conditions": conditions, **own})


def _named(plan: Mapping[str, Format]) -> str:
    return " ".join(f"{name}={format}" for name, format in plan.items())


def _against(plan: dict[str, Format], full: dict[str, Format], one: Comparison) -> list[tuple[str, dict[str, Format]]]:
    return [("own", plan), ("excess", full), ("over_uniform", one.plans[UNIFORM]), ("over_searched", one.plans[SEARCHED])]


def mean_worsening(prober: Prober, a: Sequence[Measurement], b: Sequence[Measurement], metric: str) -> dict[str, Any]:
    """Mean over seeds of how much worse a is than b, with a 95 % interval: the seeds' intervals are independent."""
    values = np.array([prober.worsening(x, y, metric) for x, y in zip(a, b, strict=True)])
    mean = values[:, 0].mean()
    low, high = (np.sqrt(((values[:, k] - values[:, 0]) ** 2).sum()) / len(values) for k in (1, 2))
    return {"value": float(mean), "ci": [float(mean - low), float(mean + high)]}


def compare_methods(
    run: Run, search: Search, inputs: BaselineInputs, bits: float, methods: Sequence[str], n_random: int, measurer: Measurer
) -> Comparison:
    """Every method's plan within the bytes that uniform really uses."""
    problem = search.problem.bounded(bits=bits)
    uniform = uniform_choice(problem, seed=inputs.seed)
    tight = problem.within(problem.like(uniform, "weight_bytes", "file_bytes"))
    # Not the table's uniform within its own bytes: where codebooks are shared, a plan on the way to it may have more bytes than it has.
    plans = {UNIFORM: problem.formats(uniform)}
    for name, method in BASELINES.items():
        choice = method(tight, inputs) if name in methods and name != UNIFORM else None
        if choice is not None:
            plans[name] = tight.formats(choice)
    if n_random:
        plans[RANDOM] = tight.formats(best_of_random(run, tight, inputs.seed, n_random, measurer, search.predictor.metric))
    found, _ = search.find({"bits_per_weight": bits}, n_trials=search.n_trials)
    return Comparison(bits, {SEARCHED: found.plan.formats, **plans}, found.solver)


def best_of_random(run: Run, problem: Problem, seed: int, n: int, measurer: Measurer, metric: str) -> Choice:
    known = metric_of(metric)
    choices = [random_choice(problem, seed, index) for index in range(n)]
    tasks = [PlanTask(problem.formats(choice), run.settings.n_images, "random") for choice in choices]
    values = [known.sign * measured.metrics[metric].value for measured in measurer.in_order(tasks)]
    return choices[int(np.nanargmin(values))]


# -- what the baselines know -------------------------------------------------------------------------------------------------------------


def baseline_inputs(run: Run, metric: str = DEFAULT) -> BaselineInputs:
    """What the baselines know from the run's layers and probes, by a metric."""
    statistics = LayerStatistics(run)
    probes = read_probes(run, metric, statistics=statistics)
    return BaselineInputs(
        weight_error=lambda name, entry: statistics.of_entry(name, entry).weight_error,
        hessian_error=lambda name, entry: statistics.of_entry(name, entry).error,
        learnt=learnt_scores(probes, run.settings.seed),
        alone=measured_alone(run, metric),
        seed=run.settings.seed,
    )


def learnt_scores(probes: Probes, seed: int) -> Cost:
    """Contribution of a layer's rate to the target by xgboost on raw bits, linear between the rates that probes had."""
    model = xgboost.XGBRegressor(random_state=seed, n_jobs=1).fit(probes.rates, probes.labels.target)
    shap = model.get_booster().predict(xgboost.DMatrix(probes.rates), pred_contribs=True)[:, :-1]
    tables = dict(zip(probes.table.names, mean_contributions(probes.rates, shap), strict=True))
    return lambda name, entry: float(np.interp(entry.rate, list(tables[name]), list(tables[name].values())))


def measured_alone(run: Run, metric: str = DEFAULT) -> Cost | None:
    """Excess of each layer alone at each entry, from the plans that lower one layer (the design `layer`); None unless all are there."""
    alone: dict[tuple[str, str], tuple[int, float]] = {}
    records = probe_journal(run.folder).read()
    for record in records:
        lowered = [(name, format) for name, format in record["layers"].items() if format != str(AS_IS)]
        if len(lowered) != 1 or record["n_images"] <= alone.get(lowered[0], (0, 0.0))[0]:
            continue
        worse = excess(record, metric, records)
        if worse is not None:
            alone[lowered[0]] = (record["n_images"], worse[0])

    def cost(name: str, entry: Entry) -> float:
        return 0.0 if entry.format == AS_IS else max(0.0, alone[name, str(entry.format)][1])

    known = all((name, str(entry.format)) in alone for name, menu in run.menus.items() for entry in menu if entry.format != AS_IS)
    return cost if known else None
