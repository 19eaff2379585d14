"""A model whose layers change formats, one plan after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...aq.formats import AS_IS, Format
from ...aq.plans.store import EncodingStore
from ...models.layers import Layer
from ...models.subject import Subject


class Assembly:
    """Puts de-quantized encodings into a subject's denoiser, in place; from plan to plan only layers whose format changes are touched.

    Beside the model it holds the full-precision weights of the layers that are replaced.
    """

    def __init__(self, subject: Subject, store: EncodingStore) -> None:
        self.subject, self.store = subject, store
        self._replaced: dict[str, tuple[Format, torch.Tensor]] = {}  # what it has now, and its full-precision weight

    def set(self, formats: Mapping[str, Format]) -> int:
        """Give every layer its format; the number of layers that had another."""
        changing = [layer for layer in self.subject.layers if formats[layer.name] != self._format(layer)]
        if not all(self.store.holds(layer, formats[layer.name]) for layer in changing):
            self.restore()  # encodings are made from full-precision weights
            changing = [layer for layer in self.subject.layers if formats[layer.name] != AS_IS]
        for layer in changing:
            format = formats[layer.name]
            if format == AS_IS:
                self._restore(layer.name)
                continue
            parameter = self.subject.denoiser.get_submodule(layer.name).weight
            _, original = self._replaced.get(layer.name, (AS_IS, parameter.data))
            parameter.data = torch.empty_like(original).copy_(self.store.get(layer, format).dequantize())  # type: ignore[arg-type]
            self._replaced[layer.name] = (format, original)  # type: ignore[assignment]
        return len(changing)

    def restore(self) -> None:
        """Full precision again."""
        for name in list(self._replaced):
            self._restore(name)

    def _format(self, layer: Layer) -> Format:
        return self._replaced[layer.name][0] if layer.name in self._replaced else AS_IS

    def _restore(self, name: str) -> None:
        _, original = self._replaced.pop(name)
        self.subject.denoiser.get_submodule(name).weight.data = original  # type: ignore[union-attr]
