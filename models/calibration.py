"""Second moments of every layer's inputs on the model's own trajectories: no data is needed.

Source: the Hessian of a layer's squared output error, H = E[x xᵀ] (Frantar et al. 2023, GPTQ), taken over all tokens, timesteps and images
of a sampling. How timesteps weigh is a choice (WEIGHTINGS); docs/experiments/calibration.md has their comparison.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from .hessian import Hessian, block_edges
from .hooks import Before, hooking, input_of
from .layers import Layer
from .noise import purpose_seed
from .sampling import SamplingConfig, sample_in_chunks
from .subject import Subject

log = logging.getLogger("sedaq")


def input_columns(x: torch.Tensor, layer: Layer, module: nn.Module) -> torch.Tensor:
    """The vectors that the flattened weight multiplies: (groups, tokens, in).

    A convolution's are its patches, channel by channel, taps innermost, as `weight.flatten(1)` has them.
    """
    if layer.kind == "linear":
        return x.reshape(1, -1, layer.n_in)
    taps = layer.shape[2:]
    mode = "constant" if module.padding_mode == "zeros" else str(module.padding_mode)
    x = F.pad(x, [p for pair in reversed(sides_of_padding(module, taps)) for p in pair], mode=mode)
    for axis, (size, stride, dilation) in enumerate(zip(taps, module.stride, module.dilation, strict=True), start=2):  # type: ignore[union-attr, call-overload, arg-type]
        # unfold puts the window last; dilation is a step within the window
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    n_taps = len(taps)
    batch, channels = x.shape[:2]
    x = x.reshape(batch, layer.groups, channels // layer.groups, math.prod(x.shape[2 : 2 + n_taps]), math.prod(taps))
    return x.permute(1, 0, 3, 2, 4).reshape(layer.groups, -1, layer.n_in)


def sides_of_padding(module: Any, taps: Sequence[int]) -> list[tuple[int, int]]:
    """What a convolution adds before and after each axis; "same" puts the odd one behind."""
    if module.padding == "same":
        totals = [dilation * (size - 1) for dilation, size in zip(module.dilation, taps, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(size, size) for size in ([0] * len(taps) if module.padding == "valid" else module.padding)]


WEIGHTINGS = {
    "uniform": "every token alike",
    "balanced": "timesteps alike, whatever the size of their inputs: x over its root mean square in the call",
    "early": "in proportion to the timestep: the noisy beginning counts most",
    "late": "the less noise, the more weight",
}


def check_weighting(weighting: str) -> None:
    if weighting not in WEIGHTINGS:
        raise InputError(f"calibration weighting {weighting!r} is unknown; choose one of {', '.join(WEIGHTINGS)}")


class _Accumulator:
    """Running sum of weighted x xᵀ in float64, block by block."""

    def __init__(self, layer: Layer, weighting: str) -> None:
        self.layer, self.balanced = layer, weighting == "balanced"
        self.edges = block_edges(layer.shape)
        widths = [b - a for a, b in zip(self.edges, self.edges[1:], strict=False)]
        self.sums = [torch.zeros(layer.groups, width, width, dtype=torch.float64) for width in widths]
        self.weight = 0.0

    def add(self, columns: torch.Tensor, weight: float) -> None:
        if self.balanced:
            size = columns.float().square().mean().item()
            weight = 1 / size if size > 0 else 1.0
        for total, start, stop in zip(self.sums, self.edges, self.edges[1:], strict=False):
            part = columns[:, :, start:stop].float()
            total += weight * (part.transpose(1, 2) @ part).cpu()
        self.weight += weight * columns.shape[1]

    def hessian(self) -> Hessian:
        """The identity of a layer that was never called: its module's weight is read by another, or it sleeps in this way of sampling."""
        if self.weight == 0:
            log.warning("layer %s received no input while sampling: it is encoded without calibration", self.layer.name)
            return Hessian(tuple(torch.eye(total.shape[1]).expand(total.shape).contiguous() for total in self.sums))
        return Hessian(tuple((total / self.weight).float() for total in self.sums))


class _Clock:
    """The weight of the timestep that the denoiser is at."""

    def __init__(self, subject: Subject, weighting: str) -> None:
        self.weighting, self.weight = weighting, 1.0
        self._signature = inspect.signature(subject.denoiser.forward)
        self._first: float | None = None
        if weighting in ("early", "late") and "timestep" not in self._signature.parameters:
            raise InputError(f"calibration weighting {weighting!r} needs a denoiser with an argument `timestep`; use uniform or balanced")

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.weighting in ("early", "late"):
            t = torch.as_tensor(self._signature.bind(*args, **kwargs).arguments["timestep"]).float().mean().item()
            self._first = max(self._first or t, t) or 1.0
            self.weight = t / self._first if self.weighting == "early" else 1 - t / self._first + 0.05


@contextmanager
def _accumulating(subject: Subject, layers: Sequence[Layer], weighting: str) -> Iterator[dict[str, _Accumulator]]:
    sums = {layer.name: _Accumulator(layer, weighting) for layer in layers}
    clock = _Clock(subject, weighting)

    def hook(layer: Layer) -> Before:
        return lambda module, args, kwargs: sums[layer.name].add(
            input_columns(input_of(args, kwargs).detach(), layer, module), clock.weight
        )

    with hooking(subject.denoiser, before={"": clock, **{layer.name: hook(layer) for layer in layers}}):
        yield sums


def hessian_bytes(layer: Layer) -> int:
    """Memory of one layer's accumulator."""
    edges = block_edges(layer.shape)
    return 8 * layer.groups * sum((b - a) ** 2 for a, b in zip(edges, edges[1:], strict=False))


def passes(layers: Sequence[Layer], memory_bytes: int) -> list[list[Layer]]:
    """Layers in module order, split so that each pass's accumulators fit into `memory_bytes`; every pass samples once."""
    result: list[list[Layer]] = []
    used = 0
    for layer in layers:
        size = hessian_bytes(layer)
        if not result or used + size > memory_bytes:
            result.append([])
            used = 0
        result[-1].append(layer)
        used += size
    return result


def calibrate(
    subject: Subject,
    layers: Sequence[Layer],
    *,
    n_images: int = 64,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    weighting: str = "uniform",
    memory_bytes: int | None = None,
) -> Iterator[tuple[Layer, Hessian]]:
    """H of each layer, as passes finish.

    Args:
        weighting: of the timesteps, a name in WEIGHTINGS.
        memory_bytes: bound on the accumulators of one pass; half of what is free when None.
        sampling: settings; the subject's own if None.
    """
    check_weighting(weighting)
    memory_bytes = memory_bytes or psutil.virtual_memory().available // 2
    plan = passes(layers, memory_bytes)
    for number, chosen in enumerate(plan, start=1):
        with _accumulating(subject, chosen, weighting) as sums:
            description = "calibration" if len(plan) == 1 else f"calibration {number}/{len(plan)}"
            sample_in_chunks(
                subject.sample,
                description,
                sampling or SamplingConfig(),
                seed=purpose_seed(seed, "calibration"),
                n_images=n_images,
                chunk=32,
            )
        for layer in chosen:
            yield layer, sums[layer.name].hessian()
