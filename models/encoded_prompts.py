"""What text encoders say of prompts, kept: a prompt is encoded once, and the encoder's weights are let go until a new one comes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..storage import fingerprint, tensor_fingerprint

MAX_BYTES = 10**9  # of what is kept of one encoder
Row = tuple[list[torch.Tensor], pytree.TreeSpec]


class EncodedPrompts:
    """Stands for the forward pass of a text encoder, and answers each prompt that came before from memory.

    Every tensor of a call and of its answer must have one row a prompt; an encoder of which that is not true is asked as if nothing stood for it. Of others a
    prompt is encoded by itself, so that its answer does not depend on those beside it, and is kept as long as there is room.

    Args:
        encoder: its `forward` is replaced.
        load: reads the encoder anew from its files, for prompts that come after `release`.
    """

    def __init__(self, encoder: nn.Module, load: Callable[[], nn.Module]) -> None:
        self.encoder, self._load, self._forward = encoder, load, encoder.forward
        self._rows: dict[str, Row] = {}
        self._bytes, self.stays, self.released, self._is_odd = 0, False, False, False
        self._takes_cache = "use_cache" in inspect.signature(encoder.forward).parameters
        functools.update_wrapper(self, encoder.forward)  # pipelines look at its signature
        encoder.forward = self
        encoder.register_state_dict_pre_hook(self._restored)  # whoever saves it gets its weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        n = len(tensors[0]) if tensors and tensors[0].ndim else 0
        if self._is_odd or not n or any(tensor.ndim == 0 or len(tensor) != n for tensor in tensors):
            return self._ask(args, kwargs)
        if self._takes_cache:  # which no prompt needs that is read once
            kwargs = {"use_cache": False, **kwargs}
            leaves, structure = pytree.tree_flatten((args, kwargs))
        others = [str(structure), *(None if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves)]
        rows = []
        for i in range(n):
            key = fingerprint([others, tensor_fingerprint((str(k), tensor[i]) for k, tensor in enumerate(tensors))])
            one = [leaf[i : i + 1] if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            row = self._rows.get(key) or self._row(self._ask(*pytree.tree_unflatten(one, structure)))
            if row is None:
                self._is_odd = self.stays = True
                return self._ask(args, kwargs)
            self._keep(key, row)
            rows.append(row)
        device = tensors[0].device
        return pytree.tree_unflatten([torch.cat(column).to(device) for column in zip(*(row for row, _ in rows), strict=True)], rows[0][1])

    @staticmethod
    def _row(answer: Any) -> Row | None:
        """The answer to one prompt; None where it holds more than rows."""
        leaves, structure = pytree.tree_flatten(answer)
        if not all(isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) == 1 for leaf in leaves):
            return None
        return [leaf.detach().cpu().clone() for leaf in leaves], structure

    def _keep(self, key: str, row: Row) -> None:
        if key not in self._rows:
            size = sum(leaf.nbytes for leaf in row[0])
            if self._bytes + size > MAX_BYTES:
                self.stays = True
            else:
                self._rows[key] = row
                self._bytes += size

    def _ask(self, args: Any, kwargs: Any) -> Any:
        self._restored()
        return self._forward(*args, **kwargs)

    def _restored(self, *_: Any) -> None:
        """The encoder has its weights again, if they were let go."""
        if self.released:
            fresh = dict(self._load().named_parameters())
            for name, parameter in self.encoder.named_parameters():
                parameter.data = fresh[name].data.to(parameter.device)
            self.released = False

    def release(self) -> None:
        """Let the weights go, unless the encoder is one whose answers are not kept, or was not asked yet."""
        if self._rows and not self.stays and not self.released:
            for parameter in self.encoder.parameters():
                parameter.data = parameter.data.new_empty(0)
            self.released = True
