"""What a tuning hands out, and how a model is made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ...models.subject import Subject
from ..activations.quantizer import ActivationQuantizers, attached
from ..encoding import Encoding
from .student import Student


@dataclass(frozen=True)
class Tuned:
    """Encodings and remaining tensors after tuning, and the loss on held-out trajectories on the way."""

    encodings: Mapping[str, Encoding]
    others: dict[str, torch.Tensor]  # biases, norms and whatever else was tuned, by name in the state dict
    losses: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out mean squared error, weighted as tuning was)
    inputs: ActivationQuantizers | None = None
    ending: str = ""  # what there is to say beside that all steps were done
    lost: float = math.nan  # loss of what is handed out, of a student's that answers zeros
    seconds: float = 0.0  # without recording; of all sittings, where a killed tuning went on

    @property
    def best(self) -> tuple[int, float]:
        """Step and loss of the best state; it is handed out unless `ending` says otherwise."""
        return min(self.losses, key=lambda pair: pair[1] if math.isfinite(pair[1]) else math.inf)

    def stored_in(self, subject: Subject) -> Student:
        """The model as its files have it: numbers rounded to what they are stored in."""
        student = Student(subject, self.encodings, self.inputs)
        for name, tensor in self.others.items():
            student.others[name].data.copy_(tensor.to(subject.tensor_specs[name][0]))
        return student

    @contextmanager
    def installed(self, subject: Subject) -> Iterator[None]:
        """Run the block with `subject` made of this as its files have it: de-quantized weights, tuned tensors, rounded inputs."""
        parameters = dict(subject.denoiser.named_parameters())
        originals = {name: parameters[name].data for name in self.others}
        inputs = self.inputs or ActivationQuantizers({})
        weights = {name: encoding.dequantize() for name, encoding in self.encodings.items()}
        with subject.weights_replaced(weights), attached(subject.denoiser, *inputs.modules(subject.denoiser)):
            try:
                for name, tensor in self.others.items():
                    parameters[name].data = tensor.to(subject.tensor_specs[name][0]).to(parameters[name])
                yield
            finally:
                for name, original in originals.items():
                    parameters[name].data = original
