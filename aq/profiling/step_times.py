"""What a sampling step takes with a plan, before the plan is applied: quantized layers by the kernels' cost model, all else as it was measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...kernels import cost_model, dispatch
from ...kernels.quantized_matrix import QuantizedMatrix
from ...kernels.timing import clock, interleaved_medians
from ...models.hooks import After, hooking, input_of
from ...models.layers import EMBEDDING, Layer
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...progress import track
from ...runtime.owner import artifact
from ...runtime.tasks import Task, as_damage
from ...storage import read_json, write_json
from ..encoding import Encoding, quantized_matrix
from ..formats import Format
from ..modules.layers import MIN_ROWS, quantized_module

_ROUNDS, _STEPS = 5, 2
# Fields by their names in files.
STORED = {"tokens": "tokens", "dense": "dense", "beyond": "beyond", "rest": "rest", "law": "kernel_costs"}
_TRIAL = Format.parse("2x8g8")  # what a layer takes beyond the cost model of products, patches and calls, is that of any format


@dataclass(frozen=True)
class StepTimes:
    """Nanoseconds of one step for `n_images` images at once, in float32 on this machine.

    A layer with codes takes what the cost model says of its products, and what one trial format was measured to take beyond that.

    tokens: positions of each layer's output, one number a call. dense: of each layer as it is. beyond: of each with codes, beside the cost model. rest:
    of the step without the layers. kernel_costs: their cost model, as cost_model.to_store gives it.
    """

    subject: Subject
    n_images: int
    tokens: Mapping[str, Sequence[int]]
    dense: Mapping[str, int]
    beyond: Mapping[str, int]
    rest: int
    kernel_costs: Mapping[str, Any]
    _known: dict[tuple[str, Format], int] = field(default_factory=dict, compare=False)

    @classmethod
    def measure(cls, subject: Subject, n_images: int, sampling: SamplingConfig | None = None) -> StepTimes:
        """Time the full-precision model's layers on their way, and one proxy layer with codes for each, medians over rounds.

        Raises InputError on a GPU, where products have no cost model.
        """
        if next(subject.denoiser.parameters()).device.type != "cpu":
            raise InputError("milliseconds a step are predicted on CPUs only; leave `ms_per_step` out, or take `device` cpu")
        layers = [layer for layer in subject.layers if layer.kind != EMBEDDING]  # which take no time to speak of
        modules = {layer.name: subject.denoiser.get_submodule(layer.name) for layer in layers}

        def step(steps: int) -> None:
            subject.sample(replace(sampling or SamplingConfig(), steps=steps, batch_size=n_images), seed=0, n_images=n_images)

        with _calls(subject.denoiser, modules) as calls:
            step(_STEPS)
        calls = {name: of_layer[: max(1, len(of_layer) // _STEPS)] for name, of_layer in calls.items()}  # of one step
        rests, of_layers = [], []
        for _ in range(_ROUNDS):
            start = clock()
            with timed(subject.denoiser, modules) as ms:
                step(_STEPS)
            rests.append(1e3 * (clock() - start) - sum(ms.values()))
            of_layers.append(ms)
        dense = {name: round(1e6 * median(ms[name] for ms in of_layers) / _STEPS) for name in modules}
        tokens = {name: [positions for _, positions in of_layer] for name, of_layer in calls.items()}
        by_cost_model = cls(
            subject, n_images, tokens, dense, dict.fromkeys(modules, 0), round(1e6 * median(rests) / _STEPS), cost_model.to_store()
        )
        known: dict[Any, int] = {}
        beyond = {}
        for layer in track(layers, "milliseconds of layers"):
            proxies = [(repr(modules[layer.name]), size) for size, _ in calls[layer.name]]
            for proxy in proxies:
                if proxy not in known:
                    known[proxy] = _nanoseconds(_random_proxy(modules[layer.name], layer), torch.randn(proxy[1]))
            beyond[layer.name] = sum(known[proxy] for proxy in proxies) - by_cost_model.of(layer.name, _TRIAL)
        return replace(by_cost_model, beyond=beyond, _known={})

    @classmethod
    def of_run(cls, folder: Path, subject: Subject, n_images: int, sampling: SamplingConfig | None = None) -> StepTimes:
        """Measured once for each machine, number of threads and of images, and kept in `folder`: searches repeat."""
        path = folder / "step-times" / f"{cost_model.machine()}-{torch.get_num_threads()}-{n_images}.json"

        def write(path: Path, times: StepTimes) -> None:
            content = {name: getattr(times, field) for name, field in STORED.items()}
            write_json(path, "step times", {**content, **artifact(path), "subject": subject.fingerprint})

        def read(path: Path) -> StepTimes:
            content = read_json(path, "step times", owner={**artifact(path), "subject": subject.fingerprint})
            timed = {layer.name for layer in subject.layers if layer.kind != EMBEDDING}
            with as_damage(path):
                if any(content[name].keys() != timed for name in ("tokens", "dense", "beyond")):
                    raise InputError("its layers are not those of the model")
                return cls(subject, n_images, **{field: content[name] for name, field in STORED.items()})

        return Task("milliseconds of layers", path, lambda: cls.measure(subject, n_images, sampling), write, read).result()

    @cached_property
    def _cost_model(self) -> str:
        return cost_model.adopt(self.kernel_costs)

    def of(self, name: str, format: Format) -> int:
        """Nanoseconds of one layer with a format; none of embeddings."""
        if name not in self.dense:
            return 0
        if (name, format) not in self._known:
            self._known[name, format] = self.dense[name] if format.kind == "asis" else max(0, self._quantized(name, format))
        return self._known[name, format]

    def of_plan(self, formats: Mapping[str, Format]) -> int:
        """Nanoseconds of a whole step with these formats."""
        return self.rest + sum(self.of(name, format) for name, format in formats.items())

    def _quantized(self, name: str, format: Format) -> int:
        layer = self.subject.layer(name)
        rows = layer.shape[0] // layer.groups
        if layer.groups > 1 and rows < MIN_ROWS:  # these write their weights out and convolve as dense layers do
            return self.dense[name] + self.beyond[name]
        matrix = _shapes_only(format, (rows, *layer.shape[1:]), self._cost_model)
        kernels = [(dispatch.choose(torch.empty(0), tokens, matrix), tokens) for tokens in self.tokens[name]]
        seconds = sum(cost_model.seconds(kernel, tokens, matrix) for kernel, tokens in kernels)
        return layer.groups * round(1e9 * seconds) + self.beyond[name]


@contextmanager
def _calls(denoiser: nn.Module, modules: Mapping[str, Any]) -> Iterator[dict[str, list[tuple[tuple[int, ...], int]]]]:
    """Of every module the shape of each input while the block runs, and the positions of the output."""
    found: dict[str, list[tuple[tuple[int, ...], int]]] = {name: [] for name in modules}

    def hook(name: str) -> After:
        n_out = modules[name].weight.shape[0]

        def note(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            found[name].append((tuple(input_of(args, kwargs).shape), output.numel() // n_out))

        return note

    with hooking(denoiser, after={name: hook(name) for name in modules}):
        yield found


def _random_proxy(module: nn.Module, layer: Layer) -> nn.Module:
    """A layer of the same geometry with codes at random."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(256, size, generator=generator, dtype=dtype)
        if dtype == torch.uint8
        else torch.randn(size, generator=generator).to(dtype)
        for name, (dtype, size) in _TRIAL.tensor_specs(layer.shape).items()
    }
    return quantized_module(module, layer.kind, Encoding(_TRIAL, layer.shape, tensors, 0.0))


@torch.inference_mode()
def _nanoseconds(module: nn.Module, x: torch.Tensor) -> int:
    """Median over rounds, after one that warms up."""
    return round(1e6 * interleaved_medians({"": lambda: module(x)}, _ROUNDS)[""])


def _shapes_only(format: Format, shape: tuple[int, ...], cost_model: str) -> QuantizedMatrix:
    """A matrix of such codes without memory."""
    specs = format.tensor_specs(shape)
    tensors = {name: torch.empty(size, dtype=dtype, device="meta") for name, (dtype, size) in specs.items()}
    return replace(quantized_matrix(format, shape, tensors), cost_model=cost_model)


@contextmanager
def timed(denoiser: nn.Module, names: Collection[str]) -> Iterator[dict[str, float]]:
    """Milliseconds spent in each of the modules named while the block runs."""
    spent, started = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)

    def start(name: str) -> Any:
        return lambda *_: started.__setitem__(name, clock())

    def stop(name: str) -> Any:
        return lambda *_: spent.__setitem__(name, spent[name] + 1e3 * (clock() - started[name]))

    with hooking(denoiser, before={name: start(name) for name in names}, after={name: stop(name) for name in names}):
        yield spent
