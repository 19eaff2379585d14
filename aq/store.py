"""Calibration matrices and encodings on disk: each is made once, by whoever asks first.

calibration/<layer>.safetensors                 H of one layer
encodings/<layer>.<format>.<key>.safetensors    key: weight, format, calibration, effort and seed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models.calibration import calibrate
from ..models.hessian import Hessian
from ..models.layers import Layer
from ..models.subject import Subject
from ..progress import track
from ..storage import fingerprint, load_tensors, save_tensors, tensor_fingerprint
from .encoder import encode, parse_effort
from .encoding import Encoding
from .formats import Format


class EncodingStore:
    """Encodings of one subject under one calibration, kept in `folder`.

    Args:
        calibration: what the calibration matrices depend on besides the subject: seed, n_images, steps, and settings of its sampler.
        effort, seed: of the encoder.
    """

    def __init__(self, subject: Subject, folder: Path, *, calibration: Mapping[str, Any], effort: str = "fast", seed: int = 0) -> None:
        parse_effort(effort)
        self.subject, self.folder = subject, Path(folder)
        self.calibration, self.effort, self.seed = dict(calibration), effort, seed
        self.calibration_fingerprint = fingerprint([subject.fingerprint, self.calibration])

    @property
    def identity(self) -> dict[str, Any]:
        """What plan.json's `encoding` field holds."""
        return {
            "effort": self.effort,
            "seed": self.seed,
            "calibration": self.calibration_fingerprint,
            "calibration_settings": self.calibration,
        }

    # -- calibration -----------------------------------------------------------------------------------------------------------------

    def _hessian_path(self, layer: Layer) -> Path:
        return self.folder / "calibration" / f"{layer.name}.{self.calibration_fingerprint}.safetensors"

    def calibrate(self, memory_bytes: int | None = None) -> None:
        """Make the calibration matrices that are missing."""
        missing = [layer for layer in self.subject.layers if not self._hessian_path(layer).exists()]
        if not missing:
            return
        for layer, hessian in calibrate(self.subject, missing, memory_bytes=memory_bytes, **self.calibration):
            tensors = {f"block{i}": block for i, block in enumerate(hessian.blocks)}
            save_tensors(self._hessian_path(layer), "hessian", tensors, {"layer": layer.name, "calibration": self.calibration_fingerprint})

    def hessian(self, layer: Layer) -> Hessian:
        if not self._hessian_path(layer).exists():
            self.calibrate()
        tensors, _ = load_tensors(self._hessian_path(layer), "hessian")
        return Hessian(tuple(tensors[f"block{i}"] for i in range(len(tensors))))

    # -- encodings -------------------------------------------------------------------------------------------------------------------

    def _path(self, layer: Layer, format: Format) -> Path:
        weight = tensor_fingerprint([(layer.name, self.subject.weight(layer.name))])
        key = fingerprint([weight, str(format), self.calibration_fingerprint, self.effort, self.seed])
        return self.folder / "encodings" / f"{layer.name}.{format}.{key}.safetensors"

    def get(self, layer: Layer, format: Format) -> Encoding:
        """The encoding, made now if it is not there yet."""
        if format.kind == "asis":
            stored = self.subject.tensor_specs[f"{layer.name}.weight"][0]
            return Encoding(format, layer.shape, {"weight": self.subject.weight(layer.name).to(stored)}, 0.0)
        path = self._path(layer, format)
        if path.exists():
            return Encoding.load(path)
        encoding = encode(
            self.subject.weight(layer.name),
            format,
            self.hessian(layer),
            effort=self.effort,
            seed=self.seed,
            groups=layer.groups,
            provenance={"layer": layer.name, "calibration": self.calibration_fingerprint},
        )
        encoding.save(path)
        return encoding

    def fill(self, wanted: Sequence[tuple[Layer, Format]]) -> None:
        """Make all encodings that are missing, with progress."""
        self.calibrate()
        missing = [(layer, format) for layer, format in wanted if format.kind != "asis" and not self._path(layer, format).exists()]
        done = sum(layer.n_weights for layer, format in wanted if format.kind != "asis") - sum(layer.n_weights for layer, _ in missing)
        for layer, format in track(
            missing, "encoding", done + sum(layer.n_weights for layer, _ in missing), done=done, cost=lambda item: item[0].n_weights
        ):
            self.get(layer, format)
