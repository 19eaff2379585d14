"""Which layers' inputs can stand few bits, decided by measuring, as for weights."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from ...errors import InputError
from ...models.calls import answer_of
from ...models.layers import EMBEDDING
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...models.trace import NeverCalledError
from ...progress import track
from ...runtime.tasks import json_task
from ...storage import fingerprint
from ..profiling.operations import tokens_of
from .calibration import BATCH, calibrated, record_calls
from .quantizer import SCHEMES, Activation, attached

N_ROWS = 64  # calls that each choice is measured on
RAISED = {8: 16, 6: 8}  # bits that sensitive layers get instead
SHARE = 0.05  # of all multiply-adds that may be raised
REAL_IS_WORTH = 4.0  # arithmetic of 8 bits may cost as much error as a bit does; then it is preferred to what is simulated

log = logging.getLogger("sedaq")
OutputErrors = dict[str, dict[Activation, float]]


def measured(subject: Subject, choices: Sequence[Activation], *, sampling: SamplingConfig | None = None, seed: int = 0) -> OutputErrors:
    """What rounding the inputs of one layer alone does to the denoiser: E‖ε̂ − ε‖² / E‖ε‖² over its own calls, for every layer and choice.

    Takes one forward pass of N_ROWS calls a layer and choice.
    """
    buffer = record_calls(subject, seed, sampling or SamplingConfig())
    names = [layer.name for layer in subject.layers if layer.kind != EMBEDDING]
    ready = [calibrated(subject, dict.fromkeys(names, choice), buffer) for choice in choices]
    rows = torch.randperm(len(buffer), generator=torch.Generator().manual_seed(seed))[:N_ROWS]
    device = next(subject.denoiser.parameters()).device
    calls = [buffer.batch(some, device)[0] for some in rows.split(BATCH)]

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([answer_of(subject.denoiser(**call)).double() for call in calls])

    exact = answer()
    found: OutputErrors = {name: {} for name in names}
    for name in track(names, "activations of each layer"):
        for choice, inputs in zip(choices, ready, strict=True):
            with attached(subject.denoiser, *inputs.of({name}).modules(subject.denoiser)):
                found[name][choice] = ((answer() - exact).square().sum() / exact.square().sum()).item()
    return found


def candidates(bits: int, schemes: Sequence[str] | None, *, has_timestep: bool) -> list[Activation]:
    """What is measured for activations of `bits`."""
    if bits not in RAISED:
        raise InputError(f"`activations` {bits}: choose {' or '.join(map(str, sorted(RAISED, reverse=True)))}")
    allowed = [name for name, scheme in SCHEMES.items() if has_timestep or not scheme.static] if schemes is None else list(schemes)
    raised = RAISED[bits]
    return [Activation(b, name) for b in (bits, raised) if b <= 8 for name in allowed]


def best_scheme(errors: Mapping[Activation, float], bits: int) -> Activation:
    """The least error of those with so many bits; arithmetic of 8 bits where it is not far behind."""
    of_bits = {choice: error for choice, error in errors.items() if choice.bits == bits}
    lowest = min(of_bits, key=lambda choice: of_bits[choice])
    real = next((choice for choice in of_bits if choice.is_real), None)
    return real if real is not None and of_bits[real] <= REAL_IS_WORTH * of_bits[lowest] else lowest


def chosen(errors: OutputErrors, multiply_adds: Mapping[str, int], bits: int, share: float = SHARE) -> dict[str, Activation]:
    """Every layer at `bits` by its best scheme, but for those that gain most by being raised: at most `share` of all multiply-adds.

    The choice is the exact optimum of the summed errors (a knapsack). Layers that stay as they are have no entry.
    """
    names = list(errors)
    low = {name: best_scheme(errors[name], bits) for name in names}
    raised = RAISED[bits]
    high = {name: None if raised == 16 else best_scheme(errors[name], raised) for name in names}
    gains = np.array([errors[name][low[name]] - (errors[name][up] if (up := high[name]) else 0.0) for name in names])
    weights = np.array([multiply_adds[name] for name in names], dtype=float)
    # The solver's tolerances are absolute: both sides are brought to 1.
    scaled, room = gains / max(gains.max(), 1e-300), LinearConstraint(weights / weights.sum(), -np.inf, share)
    solution = milp(-scaled, integrality=np.ones(len(names)), bounds=Bounds(0, 1), constraints=room, options={"mip_rel_gap": 1e-6})
    up_names = {name for name, taken in zip(names, solution.x, strict=True) if taken > 0.5}
    return {name: choice for name in names if (choice := high[name] if name in up_names else low[name]) is not None}


def described(choices: Mapping[str, Activation], n_layers: int) -> str:
    """How many layers are rounded to what, and which of that is real arithmetic."""
    counts = Counter(choices.values())
    parts = [
        f"{n} to {choice} ({'8-bit kernels' if choice.is_real else 'simulated'})"
        for choice, n in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return f"inputs rounded: {'; '.join([*parts, f'{n_layers - len(choices)} not at all'])}"


def choose(
    subject: Subject,
    bits: int,
    *,
    schemes: Sequence[str] | None = None,
    keep_in: Path | None = None,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> dict[str, Activation]:
    """How the inputs of each layer are to be rounded for activations of `bits`; what was measured is kept in the folder `keep_in`.

    Of several components, those of the denoisers, by schemes without ranges that are fixed in advance.

    Raises:
        InputError: for bits or schemes that are not known, and static schemes for several components.
    """
    parts = subject.denoisers
    if any(prefix for prefix in parts) and any(SCHEMES[name].static for name in schemes or ()):
        raise InputError("`activation_schemes`: ranges that are fixed in advance are for one denoiser; choose schemes by token")
    found: dict[str, Activation] = {}
    for prefix, part in parts.items():
        try:
            chosen_for_part = _choose(part, bits, schemes, keep_in, sampling or SamplingConfig(), seed, alone=not prefix)
        except NeverCalledError:
            if not prefix:
                raise
            log.warning("%s is not called in this way of sampling; its inputs stay as they are", part.name)
            continue
        found |= {f"{prefix}{name}": choice for name, choice in chosen_for_part.items()}
    return found


def _choose(
    subject: Subject, bits: int, schemes: Sequence[str] | None, keep_in: Path | None, sampling: SamplingConfig, seed: int, *, alone: bool
) -> dict[str, Activation]:
    has_timestep = alone and "timestep" in inspect.signature(subject.denoiser.forward).parameters
    wanted = candidates(bits, schemes, has_timestep=has_timestep)
    key = fingerprint([subject.fingerprint, [[c.bits, c.scheme] for c in wanted], sampling.steps, seed, sampling.identity])

    def make() -> dict[str, Any]:
        errors = measured(subject, wanted, sampling=sampling, seed=seed)
        return {"damages": {name: [[c.bits, c.scheme, error] for c, error in of.items()] for name, of in errors.items()}}

    def errors_of(content: Mapping[str, Any]) -> OutputErrors:
        return {name: {Activation(b, scheme): error for b, scheme, error in of} for name, of in content["damages"].items()}

    def check(content: Mapping[str, Any]) -> None:
        names = [layer.name for layer in subject.layers if layer.kind != EMBEDDING]
        if {name: set(of) for name, of in errors_of(content).items()} != {name: set(wanted) for name in names}:
            raise InputError("it is not of these layers and choices")

    task = json_task(f"activations of {subject.name}", (keep_in or Path()) / f"{key}.json", "activations", make, check=check)
    errors = errors_of(make() if keep_in is None else task.result())
    tokens = tokens_of(subject, sampling)
    return chosen(errors, {layer.name: layer.n_weights * tokens[layer.name] for layer in subject.layers if layer.name in tokens}, bits)
