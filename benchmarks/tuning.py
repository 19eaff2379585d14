"""Tuned and untuned models beside full precision:  python benchmarks/tuning.py build/sensitivity/mnist-dit [build/sensitivity/mnist-unet]

Of each run that benchmarks/sensitivity_data.py made and `sedaq fit` fitted: 2,000 images at 20 steps from each of three noise seeds that nothing
was chosen on. A row is kept as soon as it is measured, and read back after, so that the table may grow over several sittings
(--only PART for some rows); → benchmarks/results/tuning_SUBJECT.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import keep
from tuned_rows import Rows, State

from sedaq.aq.activations.calibration import ranged
from sedaq.aq.activations.choice import described
from sedaq.aq.activations.rounding import Activation
from sedaq.aq.apply import assemble
from sedaq.aq.formats import AS_IS
from sedaq.aq.plan import Plan, file_bytes, weight_bits
from sedaq.aq.tuning.settings import TuneSettings
from sedaq.aq.tuning.tune import Tuned, tune
from sedaq.progress import shown
from sedaq.search.verb import rounded_layers, search_run
from sedaq.sensitivity.run import Run

STEPS = {"mnist-dit": 1200, "mnist-unet": 500}  # about five minutes on two cores
UNIFORM = [(4.0, 16), (4.0, 8), (3.0, 8), (2.0, 16), (2.0, 8), (1.5, 8), (2.0, 6)]
SEARCHED = [(2.0, 8), (1.5, 8)]
SEEDS = (1, 2, 3)


def named(plan: str, bits: float, activation_bits: int, *, tuned: bool) -> str:
    return f"W{bits:g}A{activation_bits} {plan}{' tuned' if tuned else ''}"


def plan_of(run: Run, kind: str, bits: float, activation_bits: int) -> Plan:
    """The uniform or the searched plan; searched ones as `bench search` measures them, verified by eight samplings."""
    found = search_run(run, bits=bits, verify=8 if kind == "searched" else 0, n_trials=200 if kind == "searched" else 0, out=_scratch(run))
    plan = found.plan if kind == "searched" else found.uniform
    choices: Mapping[str, Activation] = rounded_layers(run, activation_bits, None) if activation_bits < 16 else {}
    return plan.with_activations(run.subject, choices)


def _scratch(run: Run) -> Path:
    return run.folder.parent.parent / "tuning" / run.subject.name / "plan.json"


def made(run: Run, plan: Plan, *, steps: int, folder: Path) -> tuple[State, dict[str, Any]]:
    """Assembled and tuned, and what a row says of it."""
    encodings = assemble(run.subject, plan, run.store)
    inputs = ranged(run.subject, plan.activations, run.settings.seed)
    tuned = Tuned(encodings, {}, inputs=inputs)
    if steps:
        tuned = tune(run.subject, encodings, TuneSettings(steps=steps), inputs=inputs, folder=folder, buffer_folder=folder)
    details = {"size_bytes": plan.size_bytes, "bits_per_weight": plan.bits_per_weight, "tune_steps": steps, "losses": tuned.losses}
    return partial(tuned.installed, run.subject), {**details, "inputs": described(plan.activations, len(plan.formats))}


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


def table(run: Run, only: str) -> list[dict[str, Any]]:
    subject, folder = run.subject, _scratch(run).parent
    rows = Rows(run, folder, SEEDS)
    whole = {
        "size_bytes": file_bytes(subject.tensor_specs),
        "bits_per_weight": weight_bits(subject, {x.name: AS_IS for x in subject.layers}),
    }
    rows.row("full precision", lambda: (nullcontext, whole))
    rows.row("W4A16 round to nearest", lambda: nearest(run, 4))
    cases = [("uniform", *case) for case in UNIFORM] + [("searched", *case) for case in SEARCHED]
    for tuned in (False, True):
        for kind, bits, activation_bits in cases:
            name = named(kind, bits, activation_bits, tuned=tuned)
            if only not in name or name in rows.rows:
                continue
            plan, steps = plan_of(run, kind, bits, activation_bits), tuned * STEPS[subject.name]
            rows.row(name, partial(made, run, plan, steps=steps, folder=folder))
    return [{**row, "excess": rows.difference(name, "full precision")} for name, row in rows.rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--only", default="", help="rows whose name holds this, beside full precision and round to nearest")
    arguments = parser.parse_args()
    for folder in arguments.runs:
        run = Run.open(folder)
        with shown():
            rows = table(run, arguments.only)
        keep(f"tuning_{run.subject.name}", f"python benchmarks/tuning.py build/sensitivity/{run.subject.name}", rows)


if __name__ == "__main__":
    main()
