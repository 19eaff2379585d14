"""What is known of every entry of every menu before anything is sampled."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from ...aq.formats import Format
from ...aq.plans.menu import Entry
from ...errors import InputError
from ...models.hessian import Hessian
from ...models.layers import Layer
from ...progress import track
from ...storage import fingerprint, load_tensors, read_json, save_tensors, write_json
from ..run import Run
from .gradients import output_gradients, row_errors


@dataclass(frozen=True)
class Trait:
    """Relative errors of one encoding; all zero for a weight that is left as it is."""

    weight_error: float  # ‖W − Ŵ‖² / ‖W‖²
    error: float  # of the layer's output, ‖(W − Ŵ)X‖² / ‖WX‖²
    score: float  # of the denoiser's output to first order, by gradients


NOTHING = Trait(0.0, 0.0, 0.0)


class Traits:
    """Looks traits up; those of the menus are computed once and kept in the run's folder.

    Where the denoiser cannot be differentiated outside of its sampler, `why_no_gradients` says so and scores are the layers' errors.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._identity = fingerprint([run.subject.fingerprint, run.store.identity])
        self._gradients: dict[str, np.ndarray] | None = None
        self.why_no_gradients: str | None = None
        self._known = self._read() or self._compute()

    @property
    def _path(self) -> Path:
        return self.run.folder / "calibration" / f"traits.{self._identity}.json"

    def __call__(self, name: str, format: Format) -> Trait:
        if format.kind == "asis":
            return NOTHING
        key = (name, str(format))
        if key not in self._known:
            self._known[key] = self._trait(self.run.subject.layer(name), format, self.run.store.hessian(self.run.subject.layer(name)))
        return self._known[key]

    def of_entry(self, name: str, entry: Entry) -> Trait:
        return self(name, entry.format)

    def _read(self) -> dict[tuple[str, str], Trait] | None:
        if not self._path.exists():
            return None
        content = read_json(self._path, "traits")
        self.why_no_gradients = content["why_no_gradients"]
        return {(name, text): Trait(*values) for name, entries in content["layers"].items() for text, values in entries.items()}

    def _compute(self) -> dict[tuple[str, str], Trait]:
        layers = self.run.subject.layers
        known = {}
        for layer in track(layers, "traits of the menus", sum(layer.n_weights for layer in layers), cost=lambda layer: layer.n_weights):
            hessian = self.run.store.hessian(layer)
            for entry in self.run.menus[layer.name]:
                if entry.format.kind != "asis":
                    known[layer.name, str(entry.format)] = self._trait(layer, entry.format, hessian)
        content = {
            layer.name: {
                str(e.format): astuple(known[layer.name, str(e.format)]) for e in self.run.menus[layer.name] if e.format.kind != "asis"
            }
            for layer in layers
        }
        write_json(self._path, "traits", {"identity": self._identity, "why_no_gradients": self.why_no_gradients, "layers": content})
        return known

    def _trait(self, layer: Layer, format: Format, hessian: Hessian) -> Trait:
        weight, encoding = self.run.subject.weight(layer.name).cpu(), self.run.store.get(layer, format)
        difference = weight - encoding.dequantize()
        weight_error = difference.double().square().sum() / weight.double().square().sum().clamp(min=1e-30)
        gradients = self._output_gradients()
        if not gradients:
            score = encoding.error
        else:
            score = float(gradients[layer.name] @ row_errors(difference, hessian, layer).numpy())
        if not all(math.isfinite(value) for value in (weight_error, encoding.error, score)):
            raise InputError(
                f"layer {layer.name}: its error in format {format} is not finite; calibrate again or leave it out with `exclude`"
            )
        return Trait(float(weight_error), encoding.error, score)

    def _output_gradients(self) -> dict[str, np.ndarray]:
        if self._gradients is None:
            path = self.run.folder / "calibration" / f"gradients.{self._identity}.safetensors"
            settings = self.run.settings
            if not path.exists():
                try:
                    found = output_gradients(self.run.subject, settings.sampling, seed=settings.seed)
                except InputError as error:
                    self.why_no_gradients = str(error)
                    found = {}
                save_tensors(path, "gradients", found, {"identity": self._identity, "why_not": self.why_no_gradients})
            tensors, metadata = load_tensors(path, "gradients")
            self.why_no_gradients = metadata["why_not"]
            self._gradients = {name: tensor.numpy() for name, tensor in tensors.items()}
        return self._gradients
