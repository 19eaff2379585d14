"""The quantized denoiser as a function of what can be tuned."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...models.calls import Call, answer_of
from ...models.layers import EMBEDDING, KINDS
from ...models.subject import Subject
from ..activations.quantizer import ACTIVATION, RANGES, ActivationQuantizers, attach
from ..encoding import Encoding
from ..plans.plan import book_holders
from .adam import distinct
from .tunable import TunableLayer

MIN_UNIT = 1e-3  # as Adafactor has it (Shazeer & Stern 2018), for what begins at zero


class Student:
    """A copy of the denoiser whose additive layers take their weights from TunableLayers.

    Their modules hold no weight of their own: `assemble` gives each the dense one, as a plain attribute that stays until the next, so that a
    forward pass may be repeated while gradients are computed (checkpointing).

    Raises:
        InputError: encodings that do not fit the denoiser's layers.
    """

    def __init__(self, subject: Subject, encodings: Mapping[str, Encoding], inputs: ActivationQuantizers | None = None) -> None:
        check_fit(subject, encodings)
        self.device = next(subject.denoiser.parameters()).device
        kinds = {layer.name: layer.kind for layer in subject.layers}
        self.layers = {
            name: TunableLayer(e, self.device) for name, e in encodings.items() if e.format.kind == "additive" and kinds[name] != EMBEDDING
        }
        for name, holder in book_holders({name: layer.format for name, layer in self.layers.items()}).items():
            self.layers[name].stored = self.layers[holder].stored
        replaced = [subject.denoiser.get_submodule(name).weight for name in self.layers]
        nothing: dict[int, Any] = {id(weight): nn.Parameter(torch.empty(0), requires_grad=False) for weight in replaced}
        self.denoiser = copy.deepcopy(subject.denoiser, nothing)
        tied = subject.tied_layers
        self._users = {name: [alias for alias, holder in tied.items() if holder == name] for name in self.layers}
        for name, encoding in encodings.items():
            module = self.denoiser.get_submodule(name)
            if name in self.layers:
                for path in (name, *self._users[name]):
                    self.denoiser.get_submodule(path)._parameters.pop("weight", None)
            else:
                module.weight.data = encoding.dequantize().to(module.weight)  # type: ignore[union-attr, operator, arg-type]
        self._inputs = inputs or ActivationQuantizers({})
        self.roundings, clock = self._inputs.modules(self.denoiser, self.device)
        attach(self.denoiser, self.roundings, clock)
        # Embeddings look rows up: few of them are met in a short tuning, so they stay as they are or as they were encoded.
        embeddings = {f"{path}.weight" for path, module in self.denoiser.named_modules() if isinstance(module, nn.Embedding)}
        # So do layers that were excluded.
        layers = {f"{path}.weight" for path, module in self.denoiser.named_modules() if isinstance(module, tuple(KINDS))}
        fixed = embeddings | layers
        self.others: dict[str, nn.Parameter] = {
            name: parameter.requires_grad_()  # type: ignore[misc]
            for name, parameter in self.denoiser.named_parameters()
            if name not in fixed and parameter.is_floating_point()
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """All that is tuned continuously; a shared codebook once."""
        layers: dict[str, nn.Parameter] = {
            f"{path}/{name}": parameter
            for path, layer in self.layers.items()
            for name, parameter in (("stored", layer.stored), ("log_scales", layer.log_scales))
        }
        ranges: dict[str, nn.Parameter] = {
            f"{path}/{ACTIVATION}/{name}": parameter
            for path, rounding in self.roundings.items()
            for name, parameter in rounding.learnable().items()
        }
        return distinct({**layers, **ranges, **self.others})

    def units(self) -> dict[str, float]:
        """Lengths that steps of parameters are relative to: their root mean square, or MIN_UNIT; of logarithms and ranges 1."""
        relative = {name: p for name, p in self.parameters().items() if not name.endswith(("/log_scales", f"/{RANGES}"))}
        return {name: max(MIN_UNIT, p.detach().square().mean().sqrt().item()) for name, p in relative.items()}

    def inputs(self) -> ActivationQuantizers:
        """How inputs are rounded, with ranges as they are now."""
        tensors = {path: {name: p.detach().clone() for name, p in one.learnable().items()} for path, one in self.roundings.items()}
        return replace(self._inputs, tensors={path: of for path, of in tensors.items() if of})

    def users_of_book(self, name: str) -> list[str]:
        """Paths of the layers whose codebooks are the parameter `name`; none where it is no codebook."""
        path, _, part = name.rpartition("/")
        if part != "stored":
            return []
        book = self.layers[path].stored
        return [path for path, layer in self.layers.items() if layer.stored is book]

    def assemble(self) -> dict[str, torch.Tensor]:
        """Give every module its dense weight, and return them by path."""
        weights = {}
        for path, layer in self.layers.items():
            module: Any = self.denoiser.get_submodule(path)
            module.weight = weights[path] = layer.weight()  # the old one goes before the next is made
            for alias in self._users[path]:
                self.denoiser.get_submodule(alias).weight = weights[path]
        return weights

    def answer(self, call: Call) -> torch.Tensor:
        """With the weights that were assembled last."""
        return answer_of(self.denoiser(**call))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Codes and continuous parameters by name, as they are and not as copies."""
        codes = {f"{path}/codes": layer.codes for path, layer in self.layers.items()}
        return {**codes, **{name: parameter.detach() for name, parameter in self.parameters().items()}}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def encoded(self, encodings: Mapping[str, Encoding], provenance: dict[str, str | int | float]) -> dict[str, Encoding]:
        """What came in with what was tuned in its place."""
        return {name: self.layers[name].encoded(provenance) if name in self.layers else encoding for name, encoding in encodings.items()}


def check_fit(subject: Subject, encodings: Mapping[str, Encoding]) -> None:
    """Raise InputError for encodings that do not fit the subject's layers."""
    shapes = {layer.name: layer.shape for layer in subject.layers}
    for name, shape in shapes.items():
        if name not in encodings:
            raise InputError(f"tuning: layer {name} of {subject.name} has no encoding; assemble the whole plan")
        if encodings[name].shape != shape:
            raise InputError(
                f"tuning: the codes of layer {name} are of shape {encodings[name].shape}, the model's weight is of {shape}; "
                "pass the model that the plan was made for"
            )
    for name in encodings.keys() - shapes.keys():
        raise InputError(
            f"tuning: the codes name layer {name!r}, which {subject.name} does not have; pass the model that the plan was made for"
        )
