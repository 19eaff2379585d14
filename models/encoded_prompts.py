"""What text encoders say of prompts, kept: a prompt is encoded once, and the encoder's weights are let go until a new one comes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..storage import fingerprint, tensor_fingerprint

MAX_BYTES = 10**9  # of what is kept of one encoder


class EncodedPrompts:
    """Stands for the forward pass of a text encoder, and answers each prompt that came before from memory.

    Every tensor of a call and of its answer must have one row a prompt; an encoder of which that is not true is left as it is. A prompt's answer does
    not depend on those beside it, whatever their number.

    Args:
        encoder: its `forward` is replaced.
        load: reads the encoder anew from its files, for prompts that come after `release`.
    """

    def __init__(self, encoder: nn.Module, load: Callable[[], nn.Module]) -> None:
        self.encoder, self._load, self._forward = encoder, load, encoder.forward
        self._rows: dict[str, tuple[list[torch.Tensor], pytree.TreeSpec]] = {}
        self._bytes, self.stays, self.released = 0, False, False
        functools.update_wrapper(self, encoder.forward)  # pipelines look at its signature
        encoder.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        n = len(tensors[0]) if tensors and tensors[0].ndim else 0
        if not n or any(tensor.ndim == 0 or len(tensor) != n for tensor in tensors):
            return self._forward_all(args, kwargs)
        others = [None if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves]
        keys = [fingerprint([others, tensor_fingerprint((str(k), t[i]) for k, t in enumerate(tensors))]) for i in range(n)]
        for i, key in enumerate(keys):
            if key not in self._rows:
                one = [leaf[i : i + 1] if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
                if not self._keep(key, self._forward_all(*pytree.tree_unflatten(one, structure))):
                    return self._forward_all(args, kwargs)
        rows = [self._rows[key] for key in keys]
        device = tensors[0].device
        return pytree.tree_unflatten([torch.cat(column).to(device) for column in zip(*(row for row, _ in rows), strict=True)], rows[0][1])

    def _keep(self, key: str, answer: Any) -> bool:
        """Whether the answer to one prompt could be kept."""
        leaves, structure = pytree.tree_flatten(answer)
        if not all(isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) == 1 for leaf in leaves):
            self.stays = True
            return False
        size = sum(leaf.nbytes for leaf in leaves)
        if self._bytes + size > MAX_BYTES:
            self.stays = True
            return False
        self._rows[key] = [leaf.detach().cpu().clone() for leaf in leaves], structure
        self._bytes += size
        return True

    def _forward_all(self, args: Any, kwargs: Any) -> Any:
        if self.released:
            fresh = dict(self._load().named_parameters())
            for name, parameter in self.encoder.named_parameters():
                parameter.data = fresh[name].data.to(parameter.device)
            self.released = False
        return self._forward(*args, **kwargs)

    def release(self) -> None:
        """Let the weights go, unless the encoder is one whose answers are not kept, or was not asked yet."""
        if self._rows and not self.stays and not self.released:
            for parameter in self.encoder.parameters():
                parameter.data = parameter.data.new_empty(0)
            self.released = True
