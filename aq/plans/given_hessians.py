"""Matrices that a user gives in the place of a calibration."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ...errors import InputError
from ...models.hessian import Hessian, block_edges
from ...models.layers import Layer


def read_hessian(path: Path, layer: Layer) -> Hessian:
    """The matrix of a layer. Raises InputError for a file without the layer's matrix, or with one of another shape."""
    try:
        with safe_open(path, framework="pt") as file:
            matrix = file.get_tensor(layer.name).float()
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: holds no matrix for layer {layer.name} ({error}); give one for each layer") from error
    whole = matrix if matrix.ndim == 3 else matrix.expand(layer.groups, *matrix.shape)
    if whole.shape != (layer.groups, layer.n_in, layer.n_in):
        raise InputError(f"{path}: the matrix of layer {layer.name} is {tuple(matrix.shape)}; it must be ({layer.n_in}, {layer.n_in})")
    edges = block_edges(layer.shape)
    return Hessian(tuple(whole[:, a:b, a:b].contiguous() for a, b in zip(edges, edges[1:], strict=False)))
