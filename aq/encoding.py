"""One weight in one format: its stored tensors, and back to a dense weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..kernels.quantized_matrix import QuantizedMatrix
from ..kernels.reference import dequantize
from ..models.hessian import block_edges
from ..records import REMADE
from ..runtime.owner import artifact
from ..runtime.tasks import as_damage
from ..storage import check_owner, load_tensors, save_tensors
from .formats import Format
from .packing import pack, unpack


def column_order(format: Format, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Which column of the flattened weight each coded column is, None where they agree.

    Channel groups put the channels of one tap side by side, within each diagonal block of the Hessian; tap groups are the flattened
    order as it is.
    """
    taps = math.prod(shape[2:])
    if taps == 1 or format.kind != "additive" or format.grouping == "t":
        return None
    edges = block_edges(shape)
    return torch.cat([torch.arange(a, b).reshape(-1, taps).T.reshape(-1) for a, b in zip(edges, edges[1:], strict=False)])


def quantized_matrix(format: Format, shape: tuple[int, ...], tensors: Mapping[str, torch.Tensor]) -> QuantizedMatrix:
    """The kernels' view of stored tensors (names and shapes of Format.tensor_specs)."""
    if format.scalar is not None:
        return format.scalar.matrix(shape, tensors)
    n_in, taps = math.prod(shape[1:]), math.prod(shape[2:])
    scales = tensors["scales"].float()
    codes = unpack(tensors["codes"], format.code_bits, (shape[0], format.n_groups(shape), format.n_codebooks))
    return QuantizedMatrix(codes, expanded_codebooks(format, tensors), scales, n_in, column_order(format, shape), format.structure, taps)


def expanded_codebooks(format: Format, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Stored codebooks → (M, K, g) float32."""
    stored = tensors["codebooks"].float()
    if format.int8_codebooks:
        stored = stored * tensors["codebook_scales"].float().reshape(-1, 1, 1)
    return format.expansion.to(stored.device) @ stored


def stored_codebooks(format: Format, stored: torch.Tensor) -> dict[str, torch.Tensor]:
    """Vectors (M, stored, g) rounded to what the format keeps: fp16, or int8 with one fp16 scale a codebook."""
    if not format.int8_codebooks:
        return {"codebooks": stored.half()}
    scales = (stored.abs().amax((1, 2)) / 127).clamp(min=2e-7).half()
    return {"codebooks": (stored / scales.float().reshape(-1, 1, 1)).round().clamp(-127, 127).to(torch.int8), "codebook_scales": scales}


@dataclass(frozen=True)
class Encoding:
    """A weight of `shape` (out, in / groups, *taps) in `format`.

    tensors: what is stored, by the names of Format.tensor_specs. error: ‖(W − Ŵ)X‖² / ‖WX‖² on the calibration inputs. provenance: what
    else made it (effort, seed, calibration fingerprint, seconds).
    """

    format: Format
    shape: tuple[int, ...]
    tensors: dict[str, torch.Tensor]
    error: float
    provenance: dict[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stored = self.tensors["weight"].dtype if "weight" in self.tensors else torch.float16
        expected = self.format.tensor_specs(self.shape, stored)
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()}
        if found != expected:
            raise InputError(
                f"encoding {self.format} of shape {self.shape}: stored tensors are {found}, expected {expected}; encode the layer again"
            )

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored tensors, without a file's header."""
        return sum(tensor.element_size() * tensor.numel() for tensor in self.tensors.values())

    def dequantize(self) -> torch.Tensor:
        """The dense weight, float32, of `shape`."""
        if self.format.kind == "asis":
            return self.tensors["weight"].float()
        return dequantize(quantized_matrix(self.format, self.shape, self.tensors)).reshape(self.shape)

    def save(self, path: Path) -> None:
        """Write a safetensors file. Raises InputError where `path` cannot be written."""
        metadata = {"format": str(self.format), "shape": list(self.shape), "error": self.error, "provenance": self.provenance}
        save_tensors(path, "encoding", self.tensors, {**metadata, **artifact(path)})

    @classmethod
    def load(cls, path: Path, owner: Mapping[str, Any] | None = None) -> Encoding:
        """The encoding that `save` wrote. Raises InputError for a missing file, DamagedError for one that is damaged, foreign, or not of `owner`, fields of its provenance."""
        tensors, metadata = load_tensors(Path(path), "encoding")
        check_owner(str(path), {**metadata, **metadata["provenance"]}, owner or {}, REMADE)
        with as_damage(Path(path)):
            return cls(Format.parse(metadata["format"]), tuple(metadata["shape"]), tensors, metadata["error"], metadata["provenance"])

    @classmethod
    def of_codes(
        cls,
        format: Format,
        shape: tuple[int, ...],
        codes: torch.Tensor,
        stored: dict[str, torch.Tensor],
        scales: torch.Tensor,
        error: float = math.nan,
        provenance: dict[str, str | int | float] | None = None,
    ) -> Encoding:
        """From codes (out, G, M), codebooks as `stored_codebooks` gives them, and scales (out,)."""
        tensors = {"codes": pack(codes, format.code_bits), **stored, "scales": scales.half()}
        return cls(format, tuple(shape), {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, error, provenance or {})
