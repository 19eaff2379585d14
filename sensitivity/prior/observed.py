"""What one short sampling shows of every layer, and what its weight is like: measured once, and kept in the run.

Inputs x of a call are measured in units of their root mean square, so that a layer's numbers depend neither on the size of its inputs nor on that of
the images. Every image is sampled by itself: no number depends on a batch size, and an image's calls are in the order of its steps.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...errors import InputError
from ...models.hessian import Hessian
from ...models.hooks import After, Before, hooking, input_of
from ...models.layers import EMBEDDING, Layer
from ...models.noise import purpose_seed
from ...models.subject import Subject
from ...progress import track
from ...runtime.tasks import json_task
from ...storage import fingerprint
from ..run import Run
from .sight import KINDS, AskedCall, seen_directly

N_IMAGES = 4
OUTLIER = 3.0  # root mean squares, beyond which a number is an outlier
OBSERVED: dict[str, str] = {
    "weight_kurtosis": "fourth moment of the weights in units of their rows' root mean squares; 3 for normal ones",
    "weight_outliers": f"share of the weights beyond {OUTLIER:g} root mean squares of their row",
    "input_kurtosis": "fourth moment of the inputs in units of the call's root mean square; 3 for normal ones",
    "input_outliers": f"share of the inputs beyond {OUTLIER:g} root mean squares of the call",
    "effective_rank": "(tr H)² / tr(H²) of the second moments H of the inputs, over their number; 1 where all directions have the same power",
    "output_norm": "root mean square of the layer's output over that of its block's output",
    "input_trend": "log of the inputs' root mean square in the last quarter of the steps over that in the first",
    "input_variation": "standard deviation over the steps of the log of the inputs' root mean square",
    "order": "place of the layer's first call among those of all layers",
    "tokens": "input vectors of an image's whole sampling",
    **{f"sees_{kind}": f"1 where the {kind} reaches the layer's input with no other eligible layer between, else 0" for kind in KINDS},
}
Found = dict[str, dict[str, float]]  # layer, what is observed → number; what is not known has no entry


def observed(run: Run) -> tuple[Found, list[str]]:
    """What is observed of every layer of a run, and why something is not known, a line each. Sampled now where it has not been."""
    identity = fingerprint([run.subject.fingerprint, run.store.identity, sorted(OBSERVED)])
    names = {layer.name for layer in run.subject.layers}

    def check(content: Mapping[str, Any]) -> None:
        if content["identity"] != identity or content["layers"].keys() != names:
            raise InputError("it is not of this model and calibration")

    def make() -> dict[str, Any]:
        layers, why_not = observe(run.subject, run.settings.sampling, run.store.hessian, seed=run.settings.seed)
        return {"identity": identity, "layers": layers, "why_not": why_not}

    path = run.folder / "calibration" / f"properties.{identity}.json"
    content = json_task("properties of the layers", path, "properties", make, check=check).result()
    return content["layers"], content["why_not"]


def observe(subject: Subject, sampling: Any, hessian_of: Callable[[Layer], Hessian], *, seed: int) -> tuple[Found, list[str]]:
    """OBSERVED of every layer, and why something is not known. Samples N_IMAGES images, and asks each denoiser four times more."""
    sampler = _Sampler(subject)
    with sampler.watching():
        for index in track(range(N_IMAGES), "properties of the layers"):
            sampler.next_image()
            subject.sample(sampling, seed=purpose_seed(seed, "properties"), start=index, n_images=1)
    found = {layer.name: {**of_weight(subject.weight(layer.name)), **sampler.of_layer(layer)} for layer in subject.layers}
    for layer in track(subject.layers, "ranks of the inputs", sum(layer.n_in for layer in subject.layers), cost=lambda layer: layer.n_in):
        if layer.kind != EMBEDDING:
            found[layer.name]["effective_rank"] = effective_rank(hessian_of(layer))
    why_not = []
    for prefix, part in subject.denoisers.items():
        try:
            for name, seen in sampler.seen(prefix, part).items():
                found[f"{prefix}{name}"] |= {f"sees_{kind}": float(value) for kind, value in seen.items()}
        except InputError as error:
            why_not.append(f"what layers see directly is not known: {error}")
    silent = [layer.name for layer in subject.layers if layer.name not in sampler.order]
    if silent:
        why_not.append(f"{len(silent)} layers were not called while sampling, such as {silent[0]}")
    return {name: {key: value for key, value in own.items() if math.isfinite(value)} for name, own in found.items()}, why_not


# -- closed forms ------------------------------------------------------------------------------------------------------------------------


def of_weight(weight: torch.Tensor) -> dict[str, float]:
    """Kurtosis and share of outliers of a weight (out, …); rows of zeros do not count."""
    rows = weight.detach().flatten(1).double()
    powers = rows.square().mean(1, keepdim=True)
    squares = (rows.square() / powers.clamp(min=1e-300))[powers[:, 0] > 0]
    return {} if not len(squares) else {"weight_kurtosis": squares.square().mean().item(), "weight_outliers": _beyond(squares)}


def of_inputs(x: torch.Tensor) -> tuple[float, float, float]:
    """Mean square, kurtosis and share of outliers of the inputs of a call; the last two are NaN for zeros."""
    squares = x.detach().double().square()
    power = squares.mean()
    if power == 0:
        return 0.0, math.nan, math.nan
    squares = squares / power
    return power.item(), squares.square().mean().item(), _beyond(squares)


def _beyond(squares: torch.Tensor) -> float:
    return (squares > OUTLIER**2).double().mean().item()


def effective_rank(hessian: Hessian) -> float:
    """(tr H)² / tr(H²) over the number of inputs, the mean over groups: the participation ratio of H's eigenvalues, without computing them."""
    blocks = [block.double() for block in hessian.blocks]
    traces = sum((block.diagonal(dim1=1, dim2=2).sum(1) for block in blocks), torch.zeros(hessian.groups, dtype=torch.float64))
    squares = sum((block.square().sum((1, 2)) for block in blocks), torch.zeros(hessian.groups, dtype=torch.float64))
    ratios = (traces.square() / squares)[squares > 0]
    return (ratios.mean() / hessian.n_in).item() if len(ratios) else math.nan


def profile(powers: Sequence[float]) -> tuple[float, float]:
    """Trend and variation, as OBSERVED has them, of the mean squares of an image's calls; NaN where it has one call or none."""
    logs = [0.5 * math.log(power) for power in powers if power > 0]
    if len(logs) < 2 or len(logs) < len(powers):
        return math.nan, math.nan
    quarter = max(1, len(powers) // 4)
    first, last = sum(powers[:quarter]) / quarter, sum(powers[-quarter:]) / quarter
    return 0.5 * math.log(last / first), torch.tensor(logs, dtype=torch.float64).std(unbiased=False).item()


# -- sampling ----------------------------------------------------------------------------------------------------------------------------


def block_around(name: str, layers: Sequence[Layer]) -> str:
    """The path of the innermost numbered or named block that holds the layer and others: the one whose sum its output becomes part of; "" for none."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:length])
        is_block = parts[length - 1].isdigit() or re.search(r"block", parts[length - 1])
        if is_block and sum(layer.name.startswith(f"{path}.") for layer in layers) > 1:
            return path
    return ""


class _Sampler:
    """Hooks that gather numbers of every layer's calls, image by image, and copies of a few of the denoisers' calls."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.blocks = {layer.name: block_around(layer.name, subject.layers) for layer in subject.layers}
        self.order: dict[str, int] = {}
        self._powers: dict[str, list[list[float]]] = defaultdict(list)
        self._moments: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._tokens: dict[str, int] = defaultdict(int)
        self._pending: dict[str, list[tuple[str, float]]] = defaultdict(list)
        self._norms: dict[str, list[float]] = defaultdict(list)
        self._calls: dict[str, list[list[AskedCall]]] = {prefix: [] for prefix in subject.denoisers}

    def next_image(self) -> None:
        for layer in self.subject.layers:
            self._powers[layer.name].append([])
        for calls in self._calls.values():
            calls.append([])

    @contextmanager
    def watching(self) -> Iterator[None]:
        subject, module = self.subject, self.subject.denoiser.get_submodule
        products = [layer.name for layer in subject.layers if layer.kind != EMBEDDING]
        before: dict[str, Before] = {name: self._before(name) for name in products}
        after: dict[str, After] = {layer.name: self._after(layer) for layer in subject.layers}
        tied = {alias: holder for alias, holder in subject.tied_layers.items() if module(alias) is not module(holder)}
        before |= {alias: before[holder] for alias, holder in tied.items() if holder in before}
        after |= {alias: after[holder] for alias, holder in tied.items() if holder in after}
        blocks = {path: self._after_block(path) for path in dict.fromkeys(self.blocks.values()) if path}
        with ExitStack() as stack:
            stack.enter_context(hooking(subject.denoiser, before=before, after=after))
            stack.enter_context(hooking(subject.denoiser, after=blocks))
            for prefix, part in subject.denoisers.items():
                stack.enter_context(hooking(part.denoiser, before={"": self._keep_call(prefix)}))
            yield

    def _before(self, name: str) -> Before:
        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            power, *moments = of_inputs(input_of(args, kwargs))
            self._powers[name][-1].append(power)
            if power > 0:
                self._moments[name].append((moments[0], moments[1]))

        return look

    def _after(self, layer: Layer) -> After:
        def look(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            self.order.setdefault(layer.name, len(self.order))
            width = layer.shape[1] if layer.kind == EMBEDDING else layer.shape[0]
            self._tokens[layer.name] += output.numel() // width
            self._pending[self.blocks[layer.name]].append((layer.name, _power(output)))

        return look

    def _after_block(self, path: str) -> After:
        def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            power = _power(output)
            for name, own in self._pending.pop(path, []):
                if power > 0:
                    self._norms[name].append(math.sqrt(own / power))

        return look

    def _keep_call(self, prefix: str) -> Before:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls = self._calls[prefix][-1]
            calls[1:] = [AskedCall.of(args, kwargs)] if calls else []  # the first and the last
            if not calls:
                calls.append(AskedCall.of(args, kwargs))

        return keep

    def of_layer(self, layer: Layer) -> dict[str, float]:
        """What was gathered of a layer; NaN for what is not known."""
        profiles = torch.tensor([profile(powers) for powers in self._powers[layer.name]], dtype=torch.float64)
        moments = torch.tensor(self._moments[layer.name] or [(math.nan, math.nan)], dtype=torch.float64).mean(0)
        norms = self._norms[layer.name]
        return {
            "input_kurtosis": moments[0].item(),
            "input_outliers": moments[1].item(),
            "output_norm": sum(norms) / len(norms) if norms else math.nan,
            "input_trend": profiles[:, 0].nanmean().item(),
            "input_variation": profiles[:, 1].nanmean().item(),
            "order": float(self.order.get(layer.name, math.nan)),
            "tokens": self._tokens[layer.name] / N_IMAGES if layer.name in self.order else math.nan,
        }

    def seen(self, prefix: str, part: Subject) -> dict[str, dict[str, bool]]:
        """What the layers of a denoiser see directly. Raises InputError for one that was not called, or cannot be asked again."""
        calls = [calls for calls in self._calls[prefix] if calls]
        if len(calls) < 2:
            raise InputError(f"sampling did not call {part.name}'s forward")
        own, other = calls[0], calls[1]
        return seen_directly(part, part.layers, own[0], other[0], own[-1])


def _power(output: Any) -> float:
    """Mean square of all floating-point numbers of an output."""
    tensors = [leaf.detach() for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    total = sum(tensor.double().square().sum().item() for tensor in tensors)
    return total / max(1, sum(tensor.numel() for tensor in tensors))
