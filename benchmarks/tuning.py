"""Tuned and untuned models beside full precision:  python benchmarks/tuning.py build/tuning/mnist-dit [build/tuning/mnist-unet]

Of each run that was probed and fitted (docs/experiments/tuning.md): 2,000 images at 20 steps from each of three noise seeds that nothing was
chosen on. Rows are kept as they finish and read back (--only PART for some); → results/tuning_SUBJECT.json, of searched plans
results/tuning_searched_SUBJECT.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import telling
from tuned_rows import OTHER_STEPS, TUNE_STEPS, Rows, State, identity_of, tuned_state, uniform_plan

from sedaq.aq.activations.calibration import ranged
from sedaq.aq.activations.choice import described
from sedaq.aq.export.apply import assemble
from sedaq.aq.formats import AS_IS
from sedaq.aq.plans.plan import Plan, file_bytes, weight_bits
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.progress import shown
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import rounded_layers, search_run
from sedaq.sensitivity.run import Run

CASES: dict[str, list[tuple[float, int]]] = {  # bits of weights and of inputs, by kind of plan
    "uniform": [(4.0, 16), (4.0, 8), (3.0, 8), (2.0, 16), (2.0, 8), (1.5, 8), (2.0, 6)],
    "searched": [(4.0, 8), (3.0, 8), (2.0, 8), (1.5, 8)],
}
TEACHER_ALONE = ", the teacher's trajectories alone"
FILES = {"uniform": "tuning", "searched": "tuning_searched"}
SEEDS = (1, 2, 3)


def named(plan: str, bits: float, activation_bits: int, *, tuned: bool) -> str:
    return f"W{bits:g}A{activation_bits} {plan}{' tuned' if tuned else ''}"


def plan_of(run: Run, kind: str, bits: float, activation_bits: int) -> Plan:
    """The uniform or the searched plan; searched ones as `bench search` measures them, verified by eight samplings."""
    if kind == "searched":
        config = SearchConfig(verify=8, activations=_activations(activation_bits).get("activations"))
        found = search_run(run, Budget(bits=bits), config, out=run.folder / "plans" / f"W{bits:g}A{activation_bits}.json")
        return found.plan
    choices = rounded_layers(run, _activations(activation_bits).get("activations"), None)
    return uniform_plan(run, bits).with_activations(run.subject, choices)


def _activations(bits: int) -> dict[str, int]:
    return {"activations": bits} if bits < 16 else {}


def made(run: Run, plan: Plan, settings: TuneConfig | None) -> tuple[State, dict[str, Any]]:
    """A plan assembled and tuned, and what a row says of it."""
    encodings, inputs = assemble(run.subject, plan, run.store), ranged(run.subject, plan.activations, run.settings.seed)
    state, details = tuned_state(run, encodings, settings, inputs)
    sizes = {"size_bytes": plan.size_bytes, "bits_per_weight": plan.bits_per_weight, "plan": plan.hash}
    return state, {**sizes, **details, "inputs": described(plan.activations, len(plan.formats))}


def round_to_nearest(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Every row on an even grid from its least to its greatest value."""
    rows = weight.flatten(1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return (((rows - low) / step).round() * step + low).reshape(weight.shape)


def nearest(run: Run, bits: int) -> tuple[State, dict[str, Any]]:
    """Round-to-nearest: `bits` a weight and two 16-bit numbers a row."""
    layers = run.subject.layers
    size = sum(math.ceil(bits * layer.n_weights / 8) + 4 * layer.shape[0] for layer in layers)
    rest = file_bytes({name: s for name, s in run.subject.tensor_specs.items() if name not in {f"{layer.name}.weight" for layer in layers}})
    details = {"size_bytes": size + rest, "bits_per_weight": 8 * size / sum(layer.n_weights for layer in layers)}
    weights = {layer.name: round_to_nearest(run.subject.weight(layer.name), bits) for layer in layers}
    return lambda: run.subject.weights_replaced(weights), details


def tune_steps(run: Run) -> int:
    """About five minutes' worth on two cores."""
    return TUNE_STEPS.get(run.subject.name, OTHER_STEPS)


def opened(run: Run, name: str) -> Rows:
    """The rows of results/NAME_SUBJECT.json, that of full precision among them."""
    subject = run.subject
    command = f"python benchmarks/tuning.py build/tuning/{subject.name}"
    rows = Rows(run, f"{name}_{subject.name}", command, SEEDS, tune_steps=tune_steps(run))
    as_is = {layer.name: AS_IS for layer in subject.layers}
    rows.full_precision(size_bytes=file_bytes(subject.tensor_specs), bits_per_weight=weight_bits(subject, as_is))
    return rows


def rows_of(kind: str, steps: int) -> Iterator[tuple[str, tuple[float, int], TuneConfig | None]]:
    """Name, bits of weights and inputs, and tuning of every row."""
    for case in CASES[kind]:
        tuned = named(kind, *case, tuned=True)
        yield named(kind, *case, tuned=False), case, None
        yield tuned, case, TuneConfig(steps=steps)
        if kind == "searched" and case[0] <= 2:
            yield f"{tuned}{TEACHER_ALONE}", case, TuneConfig(steps=steps, refresh_every=0)


def table(run: Run, kind: str, only: str) -> None:
    """The rows of one kind of plan whose names hold `only`."""
    wanted = [(name, *row) for name, *row in rows_of(kind, tune_steps(run)) if only in name]
    if not wanted:
        return
    rows = opened(run, FILES[kind])
    if kind == "uniform":
        rows.row("W4A16 round to nearest", lambda: nearest(run, 4))
    for name, case, settings in wanted:
        plan, against = plan_of(run, kind, *case), name.removesuffix(TEACHER_ALONE) if name.endswith(TEACHER_ALONE) else None
        identity = {"plan": plan.hash, "tuning": identity_of(settings)}
        rows.row(name, partial(made, run, plan, settings), identity=identity, against=against)


@telling()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--only", default="", help="rows whose name holds this, beside full precision and round to nearest")
    arguments = parser.parse_args()
    with shown():
        for folder in arguments.runs:
            for kind in CASES:
                table(Run.open(folder), kind, arguments.only)


if __name__ == "__main__":
    main()
