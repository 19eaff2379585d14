"""Layers that hold codes instead of a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from ...kernels import native
from ...kernels.ops import product
from ...kernels.quantized_matrix import Geometry, QuantizedMatrix
from ...kernels.reference import dequantize
from ...models.calibration import sides_of_padding
from ...models.hooks import add_hooks
from ...models.layers import EMBEDDING, kind_of, put_channels_last
from ..activations.quantizer import ActivationQuantizer, quantizer_hook
from ..encoding import Encoding, quantized_matrix
from ..formats import Format
from .dense_weight import DenseWeight

_CONVOLUTIONS: dict[str, Any] = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}
MIN_ROWS = 16  # of a conv group that is worth a product of its own


class _Quantized(nn.Module):
    """Stored tensors as buffers, by the names and shapes of Format.tensor_specs.

    `precision` is the class of arithmetic, a name in kernels.dispatch.PRECISIONS: "exact" in the input's dtype, "bf16" in bfloat16, "a8"
    with activations rounded to 8 bits a token (of a convolution: all that one position of the output sees), or their products with codewords. `cost_model` names the one by which
    kernels are chosen, as cost_model.adopt does; empty where it is this machine's. `compute_dtype` is what `weight` has, and follows casts of the module.
    """

    cost_model = ""

    def __init__(
        self, format: Format, shape: tuple[int, ...], tensors: dict[str, torch.Tensor], bias: torch.Tensor | None, dtype: torch.dtype | None
    ) -> None:
        nn.Module.__init__(self)  # that of nn.Linear or nn.Conv would make a weight
        if format.kind == "asis":
            raise InputError("a layer that stays as it is has no codes; keep the module that it is")
        self.format, self.shape = format, tuple(shape)
        self.compute_dtype = dtype or (torch.get_default_dtype() if bias is None else bias.dtype)
        self.precision = "exact"
        self.activation: ActivationQuantizer | None = None
        self._matrix: tuple[torch.Tensor, QuantizedMatrix] | None = None
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def borrow(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Use codebooks, or all, that another layer holds: they are not in this layer's state."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self._matrix = None

    @property
    def weight(self) -> DenseWeight:  # type: ignore[override]
        """As modules are asked for theirs; its values are made when they are read."""
        return DenseWeight(self, self.get_buffer("codes").device)

    def reset_parameters(self) -> None:
        """Does nothing: codes are not drawn at random."""

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """The stored tensors, by name."""
        return dict(self.named_buffers(recurse=False))

    def matrix(self) -> QuantizedMatrix:
        """Unpacked codes and expanded codebooks, made at first use and again after a move or a load."""
        codes = self.get_buffer("codes")
        if self._matrix is None or self._matrix[0] is not codes:
            self._matrix = (codes, replace(quantized_matrix(self.format, self.shape, self.stored), cost_model=self.cost_model))
        return self._matrix[1]

    def prepare(self) -> None:
        """Make what products read before there are activations: small pieces of memory that stay would break the large ones that come and go
        into parts."""
        if self.get_buffer("codes").device.type == "cpu":
            native.prepare(self.matrix())

    def _load_from_state_dict(self, *args: Any) -> None:
        # It copies into the buffers, so their identity does not tell that they changed.
        super()._load_from_state_dict(*args)
        self._matrix = None

    def _apply(self, fn: Any, recurse: bool = True) -> _Quantized:
        """Moves take the stored tensors along; casts (`.half()`, `.to(torch.bfloat16)`) leave what is stored as it is."""
        before = self.stored
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype, device=self.get_buffer("codes").device)).dtype
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = self.get_buffer(name)
            if moved.dtype != tensor.dtype:
                self.register_buffer(name, tensor.to(moved.device), persistent=name not in self._non_persistent_buffers_set)
        self._matrix = None
        return self

    def multiplied(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        """What codes are multiplied with, and the class of arithmetic: the one of 8-bit integers rounds inputs by itself."""
        if self.activation is None:
            return x, self.precision
        return (x, "a8") if self.activation.activation.is_real else (self.activation(x), self.precision)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, format={self.format}, bias={self.bias is not None}"


class AQLinear(_Quantized, nn.Linear):  # type: ignore[misc]
    """nn.Linear over codes: x (..., in) → (..., out).

    >>> from sedaq.aq.encoder.encoder import encode
    >>> layer = AQLinear(encode(torch.randn(16, 8), Format.parse("1x4g4")))
    >>> layer(torch.randn(3, 8)).shape
    torch.Size([3, 16])
    """

    kind = "linear"

    def __init__(self, encoding: Encoding, bias: torch.Tensor | None = None, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(encoding.format, encoding.shape, encoding.tensors, bias, dtype)
        self.out_features, self.in_features = self.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out), in x's dtype."""
        x, precision = self.multiplied(x)
        return product(x, self.matrix(), self.bias, None, precision)


class AQEmbedding(_Quantized, nn.Embedding):  # type: ignore[misc]
    """nn.Embedding over codes: ids (…) → rows (…, length). Only the rows that are looked up are de-quantized.

    What nn.Embedding does beside that is not done: rows are not scaled to a norm in passing.
    """

    kind = EMBEDDING

    def __init__(self, encoding: Encoding, *, padding_idx: int | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(encoding.format, encoding.shape, encoding.tensors, None, dtype)
        self.num_embeddings, self.embedding_dim = self.shape
        self.padding_idx = padding_idx

    def prepare(self) -> None:
        """No product reads it: codes are unpacked, and that is all."""
        self.matrix()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(…) → (…, length), in the dtype that the table had."""
        matrix = self.matrix()
        distinct, places = ids.reshape(-1).unique(return_inverse=True)
        rows = replace(matrix, codes=matrix.codes[distinct], scales=matrix.scales[distinct])
        return dequantize(rows).to(self.compute_dtype)[places].reshape(*ids.shape, self.embedding_dim)


class _AQConv(_Quantized):
    """A convolution over codes: the quantized product of its patches, which are gathered as they are needed."""

    kind: str

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A plain convolution where torch's own arguments are given: peft makes adapters of the class that they stand beside."""
        return _DENSE[cls.kind](*args, **kwargs) if args and isinstance(args[0], int) else super().__new__(cls)

    def __init__(
        self,
        encoding: Encoding,
        bias: torch.Tensor | None = None,
        *,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(encoding.format, encoding.shape, encoding.tensors, bias, dtype)
        n = len(self.shape) - 2
        self.stride, self.dilation = (value if isinstance(value, tuple) else (value,) * n for value in (stride, dilation))
        self.padding = padding if isinstance(padding, (tuple, str)) else (padding,) * n
        self.groups, self.padding_mode = groups, padding_mode
        self.out_channels, self.in_channels, self.kernel_size = self.shape[0], self.shape[1] * groups, self.shape[2:]
        self._groups: tuple[QuantizedMatrix, list[QuantizedMatrix]] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, precision = self.multiplied(x)
        padding = sides_of_padding(self, self.kernel_size)
        if self.padding_mode != "zeros" or any(before != after for before, after in padding):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, [p for pair in reversed(padding) for p in pair], mode=mode)
            padding = [(0, 0)] * len(padding)
        geometry = Geometry(tuple(self.kernel_size), self.stride, tuple(before for before, _ in padding), self.dilation)
        last = x.movedim(1, -1)
        if self.groups == 1:
            return product(last, self.matrix(), self.bias, geometry, precision).movedim(-1, 1)
        if self.out_channels // self.groups < MIN_ROWS and precision == "exact":
            weight = dequantize(self.matrix()).reshape(self.shape).to(x.dtype)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return _CONVOLUTIONS[self.kind](x, weight, bias, geometry.step, geometry.padding, geometry.dilation, self.groups)
        inputs = last.split(self.in_channels // self.groups, -1)
        biases = [None] * self.groups if self.bias is None else self.bias.chunk(self.groups)
        parts = [product(*of_group, geometry, precision) for of_group in zip(inputs, self._group_matrices(), biases, strict=True)]
        return torch.cat(parts, -1).movedim(-1, 1)

    def _group_matrices(self) -> list[QuantizedMatrix]:
        matrix = self.matrix()
        if not self._groups or self._groups[0] is not matrix:
            rows = zip(matrix.codes.chunk(self.groups), matrix.scales.chunk(self.groups), strict=True)
            self._groups = (matrix, [replace(matrix, codes=codes, scales=scales) for codes, scales in rows])
        return self._groups[1]


class AQConv1d(_AQConv, nn.Conv1d):  # type: ignore[misc]
    """nn.Conv1d over codes."""

    kind = "conv1d"


class AQConv2d(_AQConv, nn.Conv2d):  # type: ignore[misc]
    """nn.Conv2d over codes: x (N, C, H, W) → (N, out, H', W')."""

    kind = "conv2d"


class AQConv3d(_AQConv, nn.Conv3d):  # type: ignore[misc]
    """nn.Conv3d over codes."""

    kind = "conv3d"


_CLASSES = {"conv1d": AQConv1d, "conv2d": AQConv2d, "conv3d": AQConv3d}
_DENSE = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")


def quantized_module(module: nn.Module, kind: str, encoding: Encoding) -> _Quantized:
    """The quantized counterpart of a Linear, Conv or Embedding module, its bias and geometry kept."""
    dtype = cast(Any, module.weight).dtype
    if kind == EMBEDDING:
        return AQEmbedding(encoding, padding_idx=cast(Any, module.padding_idx), dtype=dtype)
    bias = cast(Any, module.bias)
    if kind == "linear":
        return AQLinear(encoding, bias, dtype=dtype)
    geometry: dict[str, Any] = {name: getattr(module, name) for name in _GEOMETRY} | {"dtype": dtype}
    convolution: _AQConv = _CLASSES[kind](encoding, bias, **geometry)
    return convolution


def put_tied(root: nn.Module, alias: str, holder: _Quantized, *, same: bool) -> None:
    """Put a layer at `alias` whose weight is that of `holder`, with a bias of its own; the holder itself where both were one module."""
    if same:
        set_module(root, alias, holder)
        return
    module = root.get_submodule(alias)
    layer = quantized_module(module, kind_of(module) or "", Encoding(holder.format, holder.shape, holder.stored, 0.0))
    layer.borrow(holder.stored)
    set_module(root, alias, layer)


def set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path` below `root`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def quantized_modules(root: nn.Module) -> dict[str, _Quantized]:
    """The layers that hold codes, by path."""
    return {path: module for path, module in root.named_modules() if isinstance(module, _Quantized)}


def put_dense_layers(root: nn.Module) -> None:
    """Put plain Linear and Conv modules with de-quantized weights in the place of quantized ones, in the dtype that these compute in."""
    for path, module in quantized_modules(root).items():
        with torch.device("meta"):
            dense = _dense_twin(module)
        dense.weight = nn.Parameter(module.weight.dense(), requires_grad=False)
        if module.bias is not None:
            dense.bias = module.bias
        set_module(root, path, dense)


def densify(root: nn.Module) -> None:
    """`put_dense_layers` for measuring, where speed of torch counts. Their inputs are rounded as those of the quantized ones are."""
    rounded = {path: module.activation for path, module in quantized_modules(root).items() if module.activation is not None}
    put_dense_layers(root)
    for path, activation in rounded.items():
        add_hooks(root.get_submodule(path), before={"": quantizer_hook(activation)})
    put_channels_last(root)


def _dense_twin(module: _Quantized) -> Any:
    if isinstance(module, AQLinear):
        return nn.Linear(module.in_features, module.out_features, module.bias is not None)
    if isinstance(module, AQEmbedding):
        return nn.Embedding(module.num_embeddings, module.embedding_dim, module.padding_idx)
    assert isinstance(module, _AQConv)
    geometry: dict[str, Any] = {name: getattr(module, name) for name in _GEOMETRY}
    cls: Any = _DENSE[module.kind]
    return cls(module.in_channels, module.out_channels, module.kernel_size, bias=module.bias is not None, **geometry)
