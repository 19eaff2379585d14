"""One layer's weight while it is tuned: codes as they are, codebooks and scales as parameters."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from ...kernels.quantized_matrix import QuantizedMatrix
from ...kernels.reference import dequantize
from ..encoder.beam import best_codes
from ..encoding import Encoding, quantized_matrix, stored_codebooks
from .straight_through import StraightThroughBuffer

CHUNK = 1 << 16  # groups that are encoded at a time


class TunableLayer(nn.Module):
    """The dense weight as a function of codebooks and log scales.

    Scales are tuned through their logarithm, which keeps signs and makes a step of Adam a relative one (a deviation from PV-Tuning).
    """

    def __init__(self, encoding: Encoding, device: torch.device | str = "cpu") -> None:
        super().__init__()
        tensors = {name: tensor.to(device) for name, tensor in encoding.tensors.items()}
        matrix = quantized_matrix(encoding.format, encoding.shape, tensors)
        self.encoding, self.format = encoding, encoding.format
        self.codes = matrix.codes.int()  # (out, G, M)
        self.order = None if matrix.order is None else matrix.order.to(device)
        stored = tensors["codebooks"].float()
        if self.format.int8_codebooks:
            stored = stored * tensors["codebook_scales"].float().reshape(-1, 1, 1)
        self.stored = nn.Parameter(stored)  # (M, stored entries, g)
        self.signs = matrix.scales.sign()  # of the scales; zero rows stay zero
        self.log_scales = nn.Parameter(torch.where(self.signs != 0, matrix.scales.abs(), 1.0).log())
        self.expansion = self.format.expansion.to(device)  # (K, stored entries)
        # Groups that end in padding keep their codes: codewords there are not bound by the weight.
        self.unpadded = self.grouped(torch.ones(encoding.shape, device=device)).amin(2)
        self.straight_through: StraightThroughBuffer | None = None

    def scales(self) -> torch.Tensor:
        """(out,); zero where the stored scale is zero."""
        return torch.where(self.signs != 0, self.signs * self.log_scales.exp(), 0.0)

    def books(self) -> torch.Tensor:
        """(M, K, g)"""
        return self.expansion @ self.stored

    def weight(self) -> torch.Tensor:
        """Dense, of the encoding's shape, differentiable in codebooks and log scales."""
        n_in = math.prod(self.encoding.shape[1:])
        return dequantize(QuantizedMatrix(self.codes, self.books(), self.scales(), n_in, self.order)).reshape(self.encoding.shape)

    def grouped(self, dense: torch.Tensor) -> torch.Tensor:
        """(out, in, *taps) → (out, G, g) in coded column order, padded."""
        rows = dense.reshape(dense.shape[0], -1)
        rows = rows if self.order is None else rows[:, self.order]
        _, n_groups, _ = self.codes.shape
        size = self.format.group_size
        return F.pad(rows, (0, n_groups * size - rows.shape[1])).reshape(-1, n_groups, size)

    @torch.no_grad()
    def want(self, weight: torch.Tensor, gradient: torch.Tensor, stride: float, decay: float) -> None:
        """Add to the straight-through buffer what a gradient of the dense weight says. stride: relative to the weight's root mean square."""
        gradient = self.grouped(gradient)
        if self.straight_through is None:
            self.straight_through = StraightThroughBuffer.zeros_like(gradient)
        self.straight_through.add(gradient, stride * weight.detach().square().mean().sqrt().item(), decay)

    @torch.no_grad()
    def nearest(self, row: torch.Tensor, group: torch.Tensor, target: torch.Tensor, beam: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (F, M) of the groups (row, group) whose scaled sums (F, g) come nearest to target (F, g), and those sums."""
        scales, books = self.scales(), self.books()
        metric = torch.eye(target.shape[1], device=target.device).unsqueeze(0)
        codes, sums = [], []
        for some_rows, some_targets in zip(row.split(CHUNK), target.split(CHUNK), strict=True):
            scale = scales[some_rows].reshape(1, -1, 1)
            found, words = best_codes(-some_targets.unsqueeze(0), metric, scale, books, beam)
            codes.append(found[0].int())
            sums.append((words * scale)[0])
        return torch.cat(codes), torch.cat(sums)

    def encoded(self, provenance: dict[str, str | int | float]) -> Encoding:
        """As it is stored."""
        return Encoding.of_codes(
            self.format,
            self.encoding.shape,
            self.codes,
            stored_codebooks(self.format, self.stored.detach()),
            self.scales().detach(),
            self.encoding.error,
            {**self.encoding.provenance, **provenance},
        )
