"""The weight of a quantized layer, as others see it: a tensor without values until they are read."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from ...errors import InputError
from ...kernels.quantized_matrix import QuantizedMatrix
from ...kernels.reference import dequantize

log = logging.getLogger("sedaq")
_COPIES = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


class _Layer(Protocol):
    shape: tuple[int, ...]
    compute_dtype: torch.dtype

    def matrix(self) -> QuantizedMatrix: ...


class DenseWeight(torch.Tensor):
    """`layer.weight` of a quantized layer: shape, dtype and device cost nothing. Any operation de-quantizes it first, and says so in the log once.

    It is no parameter and in no state dict. Nothing can be written to it: codes do not follow. Raises InputError for operations that would.
    """

    layer: _Layer
    _is_hf_initialized = True  # transformers looks at it before it draws initial values

    @staticmethod
    def __new__(cls, layer: _Layer, device: torch.device) -> DenseWeight:
        found: DenseWeight = torch.Tensor._make_wrapper_subclass(cls, layer.shape, dtype=layer.compute_dtype, device=device)
        found.layer = layer
        return found

    def __init__(self, layer: _Layer, device: torch.device) -> None:
        super().__init__()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in _COPIES:
            return cls(args[0].layer, args[0].device)
        written = [value for argument, value in zip(func._schema.arguments, args, strict=False) if argument.is_write]
        if any(isinstance(value, cls) for value in written):
            raise InputError(
                f"{func}: the weight of a quantized layer cannot be written, for its codes do not follow; keep adapters apart, or `dequantize` the model"
            )
        args, kwargs = pytree.tree_map_only(cls, cls.dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    def dense(self) -> torch.Tensor:
        """The values."""
        if not getattr(self.layer, "weight_was_read", False):
            self.layer.weight_was_read = True  # type: ignore[attr-defined]
            log.info("the weight of %s is de-quantized, because its values are read", type(self.layer).__name__)
        return dequantize(self.layer.matrix()).reshape(self.layer.shape).to(self.layer.compute_dtype)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DenseWeight(shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r})"
