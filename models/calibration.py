"""Second moments of every layer's inputs on the model's own trajectories: no data is needed.

Source: the Hessian of a layer's squared output error, H = E[x xᵀ] (Frantar et al. 2023, GPTQ), taken over all tokens, timesteps and images
of a sampling. How timesteps weigh is a choice (WEIGHTINGS); docs/experiments/calibration.md has their comparison.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from statistics import median
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from ..progress import track
from .components import is_told_the_time
from .hessian import Hessian, block_edges
from .hooks import Before, hooking, input_of
from .layers import EMBEDDING, Layer
from .noise import purpose_seed
from .sampling import SamplingConfig, split_images
from .shared_inputs import Inputs, find_shared, forgetting, groups_of
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
    """Running sum of weighted x xᵀ, block by block, in float32: a call adds the product of all its tokens, and calls are few hundreds."""

    def __init__(self, layer: Layer, weighting: str) -> None:
        self.layer, self.balanced = layer, weighting == "balanced"
        self.edges = block_edges(layer.shape)
        widths = [b - a for a, b in zip(self.edges, self.edges[1:], strict=False)]
        self.sums = [torch.zeros(layer.groups, width, width) for width in widths]
        self.weight = 0.0

    def add(self, columns: torch.Tensor, weight: float) -> None:
        if self.balanced:
            size = columns.float().square().mean().item()
            weight = 1 / size if size > 0 else 1.0
        for total, start, stop in zip(self.sums, self.edges, self.edges[1:], strict=False):
            part = columns[:, :, start:stop].float()
            total.add_((part.transpose(1, 2) @ part).cpu(), alpha=weight)
        self.weight += weight * columns.shape[1]

    def hessian(self) -> Hessian:
        """The identity of a layer that was never called: its module's weight is read by another, or it sleeps in this way of sampling."""
        if self.weight == 0:
            return Hessian(tuple(torch.eye(total.shape[1]).expand(total.shape).contiguous() for total in self.sums))
        return Hessian(tuple(total / self.weight for total in self.sums))


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
def _accumulating(
    subject: Subject, groups: Sequence[Sequence[Layer]], weighting: str
) -> Iterator[tuple[dict[str, _Accumulator], set[str]]]:
    """Sums of every group, by its first layer, and after the block the names of layers that got another input than that one after all."""
    sums = {group[0].name: _Accumulator(group[0], weighting) for group in groups}
    clock, inputs, strays, calls = _Clock(subject, weighting), Inputs(), set[str](), Counter[str]()

    def first(layer: Layer) -> Before:
        def add(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls[layer.name] += 1
            x = input_of(args, kwargs).detach()
            inputs.first_with(layer.name, module, x)
            sums[layer.name].add(input_columns(x, layer, module), clock.weight)

        return add

    def other(name: str, leader: str) -> Before:
        def check(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls[name] += 1
            if inputs.first_with(name, module, input_of(args, kwargs).detach()) != leader:
                strays.add(name)

        return check

    hooks = {group[0].name: first(group[0]) for group in groups}
    hooks |= {alias: hooks[holder] for alias, holder in _apart(subject).items() if holder in hooks}
    hooks |= {layer.name: other(layer.name, group[0].name) for group in groups for layer in group[1:]}
    with hooking(subject.denoiser, before=forgetting(subject, inputs)), hooking(subject.denoiser, before={"": clock, **hooks}):
        yield sums, strays
    strays |= {layer.name for group in groups for layer in group[1:] if calls[layer.name] != calls[group[0].name]}


def _apart(subject: Subject) -> dict[str, str]:
    """Modules of their own that have their weight from a layer, which sees what they get, too."""
    module = subject.denoiser.get_submodule
    return {alias: holder for alias, holder in subject.tied_layers.items() if module(alias) is not module(holder)}


def tokens_per_image(subject: Subject, layers: Sequence[Layer], sampling: SamplingConfig) -> dict[str, float]:
    """How many input vectors an image gives each layer: those of one image in two steps, times half of the steps where a component is asked at each."""
    counts: Counter[str] = Counter()

    def hook(layer: Layer) -> Before:
        def count(module: nn.Module, args: Any, kwargs: Any) -> None:
            counts[layer.name] += input_columns(input_of(args, kwargs).detach(), layer, module).shape[1]

        return count

    with hooking(subject.denoiser, before={layer.name: hook(layer) for layer in layers}):
        subject.sample(replace(sampling, steps=2), seed=0, n_images=1)
    steps = sampling.steps or subject.adapter.default_steps or 2
    once = tuple(prefix for prefix, part in subject.parts.items() if subject.components and not is_told_the_time(part.denoiser))
    return {layer.name: counts[layer.name] * (1 if layer.name.startswith(once) else steps / 2) for layer in layers}


TOKENS_PER_INPUT = 256  # that the median layer sees, where nothing is said; docs/experiments/calibration.md has what fewer cost
MIN_IMAGES, MAX_IMAGES = 16, 64  # prompts and trajectories are to differ; beyond, a few percent of error are left
NEW_STEPS = 10  # that count of an image
MIN_STEPS = 20  # layers that are told few times are encoded badly for all others; docs/experiments/calibration.md has how badly
N_PARTS, SPREAD = 8, 0.2  # of the images, and the greatest share by which their steps differ
BATCH = 32  # images between two records of progress


def steps_needed(subject: Subject, sampling: SamplingConfig) -> int | None:
    """In how many steps calibration is to sample: as many as `sampling`, and MIN_STEPS or more; the model's own number where that is asked for."""
    return None if sampling.steps is None else max(sampling.steps, min(MIN_STEPS, subject.trained_timesteps or MIN_STEPS))


def split_by_steps(n_images: int, steps: int | None, spread: float, most: int | None = None) -> list[tuple[int | None, int]]:
    """In how many steps how many images are sampled, so that layers are told other times by each part of them.

    Args:
        spread: the greatest share of `steps` that a part has more or less; 0: all have as many.
        most: steps of any part.

    Example:
        >>> split_by_steps(64, 20, 0.2)[:2], split_by_steps(64, 20, 0)
        ([(16, 8), (17, 8)], [(20, 64)])
    """
    n_parts = min(N_PARTS, n_images)
    if steps is None or not spread or n_parts < 2:
        return [(steps, n_images)]
    found: Counter[int | None] = Counter()
    for part in range(n_parts):
        of_part = max(1, round(steps * (1 + spread * (2 * part / (n_parts - 1) - 1))))
        found[min(of_part, most or of_part)] += n_images * (part + 1) // n_parts - n_images * part // n_parts
    return list(found.items())


def images_needed(subject: Subject, sampling: SamplingConfig) -> int:
    """How many images calibration is to sample: fewer of large images, which have many tokens each. Steps beyond ten say little that is new of an image."""
    sampling = replace(sampling, steps=min(sampling.steps or subject.adapter.default_steps or NEW_STEPS, NEW_STEPS))
    layers = [layer for layer in subject.layers if layer.kind != EMBEDDING]
    tokens = tokens_per_image(subject, layers, sampling)
    per_input = median(tokens[layer.name] / layer.n_in for layer in layers) if layers else 0
    return min(max(math.ceil(TOKENS_PER_INPUT / per_input), MIN_IMAGES), MAX_IMAGES) if per_input else MAX_IMAGES


def hessian_bytes(layer: Layer) -> int:
    """Memory of one layer's accumulator."""
    edges = block_edges(layer.shape)
    return 4 * layer.groups * sum((b - a) ** 2 for a, b in zip(edges, edges[1:], strict=False))


def passes(groups: Sequence[Sequence[Layer]], memory_bytes: int) -> list[list[Sequence[Layer]]]:
    """Groups of layers in order, split so that each pass's accumulators, one a group, fit into `memory_bytes`; every pass samples once."""
    result: list[list[Sequence[Layer]]] = []
    used = 0
    for group in groups:
        size = hessian_bytes(group[0])
        if not result or used + size > memory_bytes:
            result.append([])
            used = 0
        result[-1].append(group)
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
    spread: float = 0.0,
    memory_bytes: int | None = None,
) -> Iterator[tuple[Layer, Hessian]]:
    """H of each layer, as passes finish; of tables of embeddings the identity, for they look rows up. Layers with the same input have one in common.

    Args:
        weighting: of the timesteps, a name in WEIGHTINGS.
        spread: the greatest share of its steps that a part of the images has more or less.
        memory_bytes: bound on the accumulators of one pass; half of what is free when None.
        sampling: settings; the subject's own if None.
    """
    check_weighting(weighting)
    memory_bytes = memory_bytes or psutil.virtual_memory().available // 2
    sampling = sampling or SamplingConfig()
    yield from ((layer, Hessian.identity(layer.n_in)) for layer in layers if layer.kind == EMBEDDING)
    products = [layer for layer in layers if layer.kind != EMBEDDING]
    shared = find_shared(subject, products, sampling) if len(products) > 1 else {}
    parts = split_by_steps(n_images, sampling.steps, spread, subject.trained_timesteps)
    edges = accumulate((count for _, count in parts), initial=0)
    batches = [(steps, *batch) for (steps, count), start in zip(parts, edges, strict=False) for batch in split_images(start, count, BATCH)]
    waiting = passes(groups_of(products, shared), memory_bytes)
    n_passes, number = len(waiting), 0
    while waiting:
        number += 1
        groups = waiting.pop(0)
        with _accumulating(subject, groups, weighting) as (sums, strays):
            description = "calibration" if n_passes == 1 else f"calibration {number}/{n_passes}"
            for steps, first, count in track(batches, description, cost=lambda batch: batch[2]):
                subject.sample(replace(sampling, steps=steps), seed=purpose_seed(seed, "calibration"), start=first, n_images=count)
        unused = [name for name, total in sums.items() if total.weight == 0]
        if unused:
            log.warning("%d layers received no input while sampling and are encoded without calibration: %s", len(unused), _some(unused))
        for group in groups:
            hessian = sums[group[0].name].hessian()
            yield from ((layer, hessian) for layer in group if layer.name not in strays)
        apart = [[layer] for group in groups for layer in group if layer.name in strays]
        if apart:
            waiting += passes(apart, memory_bytes)
            n_passes = number + len(waiting)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and others"
