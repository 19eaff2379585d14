"""What is known of every entry of every menu before anything is sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from ...aq.formats import Format
from ...aq.plans.menu import Entry
from ...errors import InputError
from ...models.hessian import Hessian
from ...models.layers import Layer
from ...progress import track
from ...runtime.owner import artifact
from ...runtime.tasks import Task, as_damage, json_task
from ...storage import fingerprint, load_tensors, save_tensors
from ..run import Run
from .gradients import output_gradients, row_errors


@dataclass(frozen=True)
class EntryStatistics:
    """Relative errors of one encoding; all zero for a weight that is left as it is."""

    weight_error: float  # ‖W − Ŵ‖² / ‖W‖²
    error: float  # of the layer's output, ‖(W − Ŵ)X‖² / ‖WX‖²
    score: float  # of the denoiser's output to first order, by gradients


NOTHING = EntryStatistics(0.0, 0.0, 0.0)
UNKNOWN = math.nan  # the score of a layer outside of the denoisers, until `_scored` fills it in


class LayerStatistics:
    """Looks layer statistics up; those of the menus are computed once and kept in the run's folder.

    Where the denoiser cannot be differentiated outside of its sampler, `why_no_gradients` says so and scores are the layers' errors.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._identity = fingerprint([run.subject.fingerprint, run.store.identity])
        self._gradients: dict[str, np.ndarray] | None = None
        self.why_no_gradients: str | None = None
        path = run.folder / "calibration" / f"traits.{self._identity}.json"
        content = json_task("statistics of the menus", path, "traits", self._compute, check=self._check).result()
        self.why_no_gradients = content["why_no_gradients"]
        self._known = {
            (name, text): EntryStatistics(*values) for name, entries in content["layers"].items() for text, values in entries.items()
        }

    def __call__(self, name: str, format: Format) -> EntryStatistics:
        if format.kind == "asis":
            return NOTHING
        key = (name, str(format))
        if key not in self._known:
            new = self._of_entry(self.run.subject.layer(name), format, self.run.store.hessian(self.run.subject.layer(name)))
            self._known[key] = _scored({**self._known, key: new})[key]
        return self._known[key]

    def of_entry(self, name: str, entry: Entry) -> EntryStatistics:
        return self(name, entry.format)

    def _compute(self) -> dict[str, Any]:
        layers = self.run.subject.layers
        known = {}
        for layer in track(layers, "layer statistics", sum(layer.n_weights for layer in layers), cost=lambda layer: layer.n_weights):
            hessian = self.run.store.hessian(layer)
            for entry in self.run.menus[layer.name]:
                if entry.format.kind != "asis":
                    known[layer.name, str(entry.format)] = self._of_entry(layer, entry.format, hessian)
        known = _scored(known)
        content = {
            layer.name: {
                str(e.format): astuple(known[layer.name, str(e.format)]) for e in self.run.menus[layer.name] if e.format.kind != "asis"
            }
            for layer in layers
        }
        return {"identity": self._identity, "why_no_gradients": self.why_no_gradients, "layers": content}

    def _check(self, content: Mapping[str, Any]) -> None:
        if content["identity"] != self._identity or content["layers"].keys() != {layer.name for layer in self.run.subject.layers}:
            raise InputError("it is not of this model and calibration")

    def _of_entry(self, layer: Layer, format: Format, hessian: Hessian) -> EntryStatistics:
        weight, encoding = self.run.subject.weight(layer.name).cpu(), self.run.store.get(layer, format)
        difference = weight - encoding.dequantize()
        weight_error = difference.double().square().sum() / weight.double().square().sum().clamp(min=1e-30)
        gradients = self._output_gradients()
        if not gradients:
            score = encoding.error
        elif layer.name not in gradients:
            score = UNKNOWN
        else:
            score = float(gradients[layer.name] @ row_errors(difference, hessian, layer).numpy())
        if not all(math.isfinite(value) or value is UNKNOWN for value in (weight_error, encoding.error, score)):
            raise InputError(
                f"layer {layer.name}: its error in format {format} is not finite; calibrate again or leave it out with `exclude`"
            )
        return EntryStatistics(float(weight_error), encoding.error, score)

    def _output_gradients(self) -> dict[str, np.ndarray]:
        if self._gradients is None:
            task = Task(
                "gradients of the denoiser's output",
                self.run.folder / "calibration" / f"gradients.{self._identity}.safetensors",
                self._differentiate,
                write=lambda path, made: save_tensors(path, "gradients", made[0], {**made[1], **artifact(path)}),
                read=self._read_gradients,
            )
            tensors, metadata = task.result()
            self.why_no_gradients = metadata["why_not"]
            self._gradients = {name: tensor.numpy() for name, tensor in tensors.items()}
        return self._gradients

    def _read_gradients(self, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors, metadata = load_tensors(path, "gradients", owner={"identity": self._identity, **artifact(path)})
        with as_damage(path):
            if any(tensor.shape != self.run.subject.layer(name).shape[:1] for name, tensor in tensors.items()):
                raise InputError("its gradients are not those of the layers")
        return tensors, metadata

    def _differentiate(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Gradients by layer, and why there are none."""
        found, why_not = {}, None
        try:
            found = output_gradients(self.run.subject, self.run.settings.sampling, seed=self.run.settings.seed)
        except InputError as error:
            why_not = str(error)
        return found, {"identity": self._identity, "why_not": why_not}


def _scored(known: Mapping[tuple[str, str], EntryStatistics]) -> dict[tuple[str, str], EntryStatistics]:
    """Layers without gradients, in text encoders and autoencoders, are thought to be as sensitive to their error as the median of the others."""
    gains = [entry.score / entry.error for entry in known.values() if math.isfinite(entry.score) and entry.error > 0]
    typical = median(gains) if gains else 1.0
    return {key: entry if math.isfinite(entry.score) else replace(entry, score=typical * entry.error) for key, entry in known.items()}
