"""What a sampling step takes with a plan, before the plan is applied: coded layers by the kernels' law of costs, all else as it was measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..kernels import costs, dispatch
from ..kernels.coded import CodedMatrix
from ..models.layers import Layer
from ..models.subject import Subject
from ..storage import read_json, write_json
from .formats import Format
from .layers import LEAST_ROWS
from .operations import tokens_counted

_ROUNDS, _STEPS = 5, 2
_INT8_ENTRIES = 256


@dataclass(frozen=True)
class StepTimes:
    """Nanoseconds of one step for `n_images` images at once, in float32 on this machine.

    tokens: places of each layer's output. dense: of each layer as it is. rest: of the step without the layers. law: of the kernels, as
    costs.to_store gives it.
    """

    subject: Subject
    n_images: int
    tokens: Mapping[str, int]
    dense: Mapping[str, int]
    rest: int
    law: Mapping[str, Any]
    _known: dict[tuple[str, Format], int] = field(default_factory=dict, compare=False)

    @classmethod
    def measure(cls, subject: Subject, n_images: int, **settings: Any) -> StepTimes:
        """Time the full-precision model's layers on their way, medians over rounds; `settings` are those of its sample function.

        Raises InputError on a GPU, where products have no law of costs.
        """
        if next(subject.denoiser.parameters()).device.type != "cpu":
            raise InputError("milliseconds a step are foretold on CPUs only; leave --ms-per-step out, or take --device cpu")
        modules = {layer.name: subject.denoiser.get_submodule(layer.name) for layer in subject.layers}

        def step(steps: int) -> None:
            subject.sample(seed=0, n_images=n_images, steps=steps, **{**settings, "batch_size": n_images})

        with tokens_counted(modules) as tokens:
            step(1)
        rests, of_layers = [], []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            with timed(modules) as ms:
                step(_STEPS)
            rests.append(1e3 * (time.perf_counter() - start) - sum(ms.values()))
            of_layers.append(ms)
        dense = {name: round(1e6 * median(ms[name] for ms in of_layers) / _STEPS) for name in modules}
        return cls(subject, n_images, tokens, dense, round(1e6 * median(rests) / _STEPS), costs.to_store())

    @classmethod
    def of_run(cls, folder: Path, subject: Subject, n_images: int, **settings: Any) -> StepTimes:
        """Measured once for each machine, number of threads and of images, and kept in `folder`: searches repeat."""
        path = folder / "step-times" / f"{costs.machine()}-{torch.get_num_threads()}-{n_images}.json"
        if path.exists():
            stored = read_json(path, "step times")
            return cls(subject, n_images, stored["tokens"], stored["dense"], stored["rest"], stored["law"])
        times = cls.measure(subject, n_images, **settings)
        write_json(path, "step times", {"tokens": times.tokens, "dense": times.dense, "rest": times.rest, "law": times.law})
        return times

    def of(self, name: str, format: Format) -> int:
        """Nanoseconds of one layer with a format."""
        if (name, format) not in self._known:
            self._known[name, format] = self._coded(self.subject.layer(name), format) if format.kind != "asis" else self.dense[name]
        return self._known[name, format]

    @cached_property
    def _law(self) -> str:
        return costs.adopt(self.law)

    def of_plan(self, formats: Mapping[str, Format]) -> int:
        return self.rest + sum(self.of(name, format) for name, format in formats.items())

    def _coded(self, layer: Layer, format: Format) -> int:
        rows = layer.shape[0] // layer.groups
        if layer.groups > 1 and rows < LEAST_ROWS:  # these write their weights out and convolve as dense layers do
            return self.dense[layer.name]
        matrix = _shapes_only(format, (rows, *layer.shape[1:]), self._law)
        kernel = dispatch.choose(torch.empty(0), self.tokens[layer.name], matrix)
        return layer.groups * round(1e9 * costs.seconds(kernel, self.tokens[layer.name], matrix))


def _shapes_only(format: Format, shape: tuple[int, ...], law: str) -> CodedMatrix:
    """A matrix of such codes without memory."""
    n_out, n_in = shape[0], math.prod(shape[1:])
    of_codes, of_books = (n_out, n_in, 1), (1, _INT8_ENTRIES, 1)
    if format.kind == "additive":
        of_codes = (n_out, format.n_groups(shape), format.n_codebooks)
        of_books = (format.n_codebooks, format.n_entries, format.group_size)
    codes, books, scales = (torch.empty(size, device="meta") for size in (of_codes, of_books, (n_out,)))
    return CodedMatrix(codes, books, scales, n_in, structure=format.structure, law=law)


@contextmanager
def timed(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, float]]:
    """Milliseconds spent in every module while the block runs."""
    spent, started = dict.fromkeys(modules, 0.0), dict.fromkeys(modules, 0.0)

    def start(name: str) -> Any:
        return lambda *_: started.__setitem__(name, time.perf_counter())

    def stop(name: str) -> Any:
        return lambda *_: spent.__setitem__(name, spent[name] + 1e3 * (time.perf_counter() - started[name]))

    handles = [
        handle
        for name, module in modules.items()
        for handle in (module.register_forward_pre_hook(start(name)), module.register_forward_hook(stop(name)))
    ]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()
