"""Ranges of static schemes, from the full-precision denoiser's own calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...models.hooks import Before, hooking, input_of
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...models.trace import Recording, ReplayBuffer, require_float32
from .quantizer import N_BUCKETS, RANGES, Activation, ActivationQuantizers, fake_quantize

N_IMAGES = 16  # whose trajectories are recorded
N_ROWS, BATCH, N_VALUES = 256, 32, 4096  # calls looked at, how many at a time, values kept a layer, bucket and batch
RATIOS = torch.linspace(0.3, 1.0, 15)  # of the greatest value, at which a range may be cut


def record_calls(subject: Subject, seed: int, sampling: SamplingConfig) -> ReplayBuffer:
    """What ranges are taken from. Raises InputError for a denoiser in 16 bits."""
    require_float32(subject, "round its inputs")
    return ReplayBuffer.record(subject, Recording("activations", N_IMAGES, seed=seed, sampling=sampling))


def timestep_edges(timesteps: torch.Tensor) -> tuple[float, ...]:
    """N_BUCKETS − 1 values between the timesteps of a sampling, with about equally many on either side of each."""
    distinct = timesteps.unique()
    if len(distinct) == 1:
        distinct = distinct.repeat(2)
    positions = torch.arange(1, N_BUCKETS) * len(distinct) / N_BUCKETS
    right = positions.round().long().clamp(1, len(distinct) - 1)
    return tuple(((distinct[right - 1] + distinct[right]) / 2).tolist())


def calibrated(subject: Subject, choices: Mapping[str, Activation], buffer: ReplayBuffer) -> ActivationQuantizers:
    """Give static schemes the ranges with the least squared error over what their layers get; a bucket that nothing fell into gets its
    neighbour's.

    Raises:
        InputError: static schemes for a denoiser without an argument `timestep`.
    """
    static = {name: choice for name, choice in choices.items() if choice.is_static}
    if not static:
        return ActivationQuantizers(dict(choices))
    edges = timestep_edges(buffer.timesteps)
    values = collected(subject, set(static), edges, buffer)
    return ActivationQuantizers(dict(choices), edges, {name: fitted(choice, values[name]) for name, choice in static.items()})


def ranged(
    subject: Subject, choices: Mapping[str, Activation], seed: int, sampling: SamplingConfig | None = None
) -> ActivationQuantizers | None:
    """`calibrated` on calls of its own, sampled in the subject's own number of steps; None where no layer's inputs are rounded."""
    if not any(choice.is_static for choice in choices.values()):
        return ActivationQuantizers(dict(choices)) if choices else None
    return calibrated(subject, choices, record_calls(subject, seed, replace(sampling or SamplingConfig(), steps=None)))


def collected(subject: Subject, names: set[str], edges: tuple[float, ...], buffer: ReplayBuffer) -> dict[str, dict[int, torch.Tensor]]:
    """Some of the inputs of each layer, by bucket of timesteps."""
    found: dict[str, dict[int, list[torch.Tensor]]] = {name: defaultdict(list) for name in names}
    device = next(subject.denoiser.parameters()).device
    rng = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(buffer), generator=rng)[:N_ROWS]
    buckets = torch.bucketize(buffer.timesteps, torch.tensor(edges))
    # One bucket a call, so that a layer's input belongs to it whatever its rows are.
    for bucket in buckets[rows].unique().tolist():
        for some in rows[buckets[rows] == bucket].split(BATCH):
            call, _ = buffer.batch(some, device)

            def keep(name: str, bucket: int = bucket) -> Before:
                def some_values(module: Any, args: Any, kwargs: Any) -> None:
                    flat = input_of(args, kwargs).detach().flatten()
                    found[name][bucket].append(flat[torch.randint(flat.numel(), (N_VALUES,), generator=rng).to(flat.device)].cpu())

                return some_values

            with torch.no_grad(), hooking(subject.denoiser, before={name: keep(name) for name in sorted(names)}):
                subject.denoiser(**call)
    return {name: {bucket: torch.cat(parts) for bucket, parts in of.items()} for name, of in found.items()}


def fitted(activation: Activation, values: Mapping[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Ranges with the least squared error among those cut at RATIOS of the greatest values, as Activation.tensor_specs has them.

    Layers that are never called, whose weights others read, have no values; they get the range −1 … 1.
    """
    known = {bucket: _fitted(activation, x) for bucket, x in (values or {0: torch.tensor([-1.0, 1.0])}).items()}
    nearest = [min(known, key=lambda other: abs(other - bucket)) for bucket in range(N_BUCKETS)]
    scales, shifts = (torch.tensor([known[bucket][part] for bucket in nearest]) for part in (0, 1))
    return {RANGES: torch.stack([scales.log(), *([shifts] if activation.is_affine else [])])}


def _fitted(activation: Activation, x: torch.Tensor) -> tuple[float, float]:
    best = (torch.inf, 1.0, 0.0)
    low, high = (min(0.0, x.min().item()), max(0.0, x.max().item())) if activation.is_affine else (0.0, x.abs().max().item())
    for ratio in RATIOS.tolist():
        width = max(ratio * (high - low), 1e-12)
        scale, shift = width / activation.largest, ratio * low / width
        error = (fake_quantize(x, activation, torch.tensor(scale), torch.tensor(shift)) - x).square().mean().item()
        best = min(best, (error, scale, shift))
    return best[1], best[2]
