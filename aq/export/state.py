"""The tensors of a quantized model's files, made one at a time: a model may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from ...errors import InputError
from ...models.subject import Subject
from ..activations.quantizer import ACTIVATION
from ..formats import BOOK_TENSORS
from ..plans.plan import book_holders
from ..tuning.tuned import Tuned


class QuantizedState(Mapping[str, torch.Tensor]):
    """Every tensor of the quantized denoiser by name, in its stored dtype. It is made when it is asked for.

    Raises:
        InputError: layers that share codebooks and have other ones.
    """

    def __init__(self, subject: Subject, tuned: Tuned) -> None:
        self._makers: dict[str, Callable[[], torch.Tensor]] = {}
        layers = set(tuned.encodings)
        for name, (dtype, _) in subject.tensor_specs.items():
            if name.rpartition(".")[0] not in layers or not name.endswith(".weight"):
                self._makers[name] = self._kept(subject, tuned, name, dtype)
        for path, tensors in ((tuned.inputs and tuned.inputs.tensors) or {}).items():
            self._makers |= {f"{path}.{ACTIVATION}.{name}": self._fixed(tensor) for name, tensor in tensors.items()}
        formats = {name: tuned.encodings[name].format for name in tuned.encodings}
        stored = {layer.name: layer for layer in subject.layers}
        holders = book_holders(formats)
        for layer, format in formats.items():
            specs = format.tensor_specs(stored[layer].shape, subject.tensor_specs[f"{layer}.weight"][0])
            own = [name for name in specs if name not in BOOK_TENSORS or holders.get(layer, layer) == layer]
            self._makers |= {f"{layer}.{name}": self._encoded(tuned, layer, name) for name in own}
            if len(own) < len(specs):
                _check_book(tuned, layer, holders[layer])

    @staticmethod
    def _kept(subject: Subject, tuned: Tuned, name: str, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        return lambda: tuned.others[name].to(dtype) if name in tuned.others else subject.tensor(name).to(dtype)

    @staticmethod
    def _fixed(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: tensor

    @staticmethod
    def _encoded(tuned: Tuned, layer: str, name: str) -> Callable[[], torch.Tensor]:
        return lambda: tuned.encodings[layer].tensors[name]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._makers[name]().detach().cpu().contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _check_book(tuned: Tuned, layer: str, holder: str) -> None:
    own, held = tuned.encodings[layer].tensors, tuned.encodings[holder].tensors
    for name in BOOK_TENSORS:
        if name in own and not own[name].equal(held[name]):
            raise InputError(f"layer {layer}: its {name} are not those of {holder}, with which it shares them; encode both from one book")
