"""What a run knows of its subject without the model: names, shapes and fingerprints. The rest is loaded when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from ..errors import DamagedError
from ..storage import SAFETENSORS_DTYPES
from .layers import Layer
from .subject import Subject

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SAFETENSORS_DTYPES.values()}
_LAYER_FIELDS = [field.name for field in fields(Layer)]


def outline_of(subject: Subject) -> dict[str, Any]:
    """The outline of a subject as JSON."""
    return {
        "name": subject.name,
        "fingerprint": subject.fingerprint,
        "model_fingerprint": subject.model_fingerprint,
        "prefixes": subject.prefixes,
        "named_components": list(subject.named_components),
        "layers": [asdict(layer) for layer in subject.layers],
        "tensors": {name: [str(dtype).removeprefix("torch."), list(shape)] for name, (dtype, shape) in subject.tensor_specs.items()},
        "weights": {layer.name: subject.weight_fingerprint(layer.name) for layer in subject.layers},
    }


class OutlinedSubject(Subject):
    """A subject of which an outline is known. What else it has is loaded when it is first asked for.

    Args:
        outline: that `outline_of` made, read back by storage.read_json.
        load: gives the subject, or raises InputError where it may not be loaded.

    What is loaded must have the layers of the outline; else DamagedError is raised.
    """

    def __init__(self, outline: Mapping[str, Any], load: Callable[[], Subject]) -> None:
        self.__dict__ |= {
            "_load": load,
            "name": outline["name"],
            "fingerprint": outline["fingerprint"],
            "model_fingerprint": outline["model_fingerprint"],
            "prefixes": list(outline["prefixes"]),
            "named_components": tuple(outline["named_components"]),
            "layers": [
                Layer(**{name: layer[name] for name in _LAYER_FIELDS} | {"shape": tuple(layer["shape"])}) for layer in outline["layers"]
            ],
            "tensor_specs": {name: (_DTYPES[dtype], tuple(shape)) for name, (dtype, shape) in outline["tensors"].items()},
            "_weight_fingerprints": dict(outline["weights"]),
        }

    def weight_fingerprint(self, name: str) -> str:
        """As it was when the outline was made."""
        return str(self._weight_fingerprints[name])

    @property
    def is_loaded(self) -> bool:
        """Whether more than the outline is there."""
        return "denoiser" in self.__dict__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.is_loaded:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        loaded = self._load()
        if loaded.layers != self.layers:
            raise DamagedError("layers.json: names other layers than the model has; delete it, it will be written again")
        self.__dict__ |= {key: value for key, value in loaded.__dict__.items() if key not in self.__dict__}
        return getattr(self, name)
