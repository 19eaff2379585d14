"""Quantizing the layers of any module in place, without a subject or a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from ...errors import InputError
from ...models.layers import Layer, find_layers, find_ties, tied_layers
from ..encoder.encoder import encode, fit_book
from ..encoder.objective import Objective
from ..encoding import Encoding
from ..formats import BOOK_TENSORS, Format
from ..plans.plan import Plan, book_holders
from .layers import put_tied, quantized_module, quantized_modules, set_module

M = TypeVar("M", bound=nn.Module)


def quantize_(
    module: M, plan: Plan | Mapping[str, Format | str], encodings: Mapping[str, Encoding] | None = None, *, effort: str = "fast"
) -> M:
    """Put quantized layers in the place of a module's Linear and Conv layers, as torchao's function of that name does. Returns the module.

    Args:
        plan: a plan, or the format of each layer by its path; a layer that is not named stays as it is.
        encodings: of each layer, by path; None: made now, under the identity as Hessian, so a run's plan with its own encodings is better.
        effort: of encodings that are made now.

    Raises:
        InputError: a path that is no layer, a format that does not fit, an encoding of another format, or a plan that also rounds inputs, for
            which their ranges have to be measured (`Run.apply` does).

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 16))
        >>> quantize_(model, {"0": "2x4g4"})[0]
        AQLinear(shape=(16, 32), format=2x4g4, bias=True)
    """
    if isinstance(plan, Plan) and plan.activations:
        raise InputError("the plan rounds inputs, whose ranges have to be measured; apply it with a run, or search without `activations`")
    given = plan.formats if isinstance(plan, Plan) else plan
    formats = {path: format if isinstance(format, Format) else Format.parse(format) for path, format in given.items()}
    formats = {path: format for path, format in formats.items() if format.kind != "asis"}
    layers = {layer.name: layer for layer in find_layers(module)}
    for path in formats:
        if path not in layers:
            raise InputError(f"`plan` names layer {path!r}, which the module does not have; name Linear and Conv layers by their paths")
    made = dict(encodings) if encodings is not None else _encoded(module, {path: layers[path] for path in formats}, formats, effort)
    for path, format in formats.items():
        if path not in made or made[path].format != format or made[path].shape != layers[path].shape:
            raise InputError(f"`encodings`: layer {path} needs one in format {format}; leave `encodings` out to make them now")
    holders = book_holders(formats)
    tied = tied_layers(find_ties(module), formats)
    same = {alias for alias, holder in tied.items() if module.get_submodule(alias) is module.get_submodule(holder)}
    for path in formats:
        _replace(module, layers[path], made[path], borrows=holders.get(path, path) != path)
    for alias, holder in tied.items():
        put_tied(module, alias, quantized_modules(module)[holder], same=alias in same)
    return module


def _encoded(module: nn.Module, layers: Mapping[str, Layer], formats: Mapping[str, Format], effort: str) -> dict[str, Encoding]:
    def weight(path: str) -> torch.Tensor:
        return module.get_parameter(f"{path}.weight").detach()

    books = {}
    for format in {format for format in formats.values() if format.book}:
        members = [path for path, other in formats.items() if other == format]
        books[format] = fit_book([Objective.of(weight(path), None, layers[path].groups) for path in members], format, effort=effort)
    found = {}
    for path, format in formats.items():
        try:
            found[path] = encode(weight(path), format, effort=effort, groups=layers[path].groups, book=books.get(format))
        except InputError as error:
            raise InputError(f"layer {path}: {error}") from error
    return found


def _replace(module: nn.Module, layer: Layer, encoding: Encoding, *, borrows: bool) -> None:
    original = module.get_submodule(layer.name)
    device = module.get_parameter(f"{layer.name}.weight").device
    quantized = quantized_module(original, layer.kind, encoding)
    if borrows:
        quantized.borrow({name: tensor for name, tensor in encoding.tensors.items() if name in BOOK_TENSORS})
    quantized.to(device)
    quantized.prepare()
    set_module(module, layer.name, quantized)
