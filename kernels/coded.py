"""The one form in which kernels see a quantized weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CodedMatrix:
    """A matrix (out, in) as scaled sums of codewords: row r, group j is scales[r] · Σ_m codebooks[m, codes[r, j, m]].

    A convolution is the matrix (out, in·kh·kw) of its flattened weight.
    """

    codes: torch.Tensor  # (out, G, M) int64
    codebooks: torch.Tensor  # (M, K, g) float32
    scales: torch.Tensor  # (out,) float32
    n_in: int  # columns without padding, at most G·g
    order: torch.Tensor | None = None  # (in,) int64: coded column i is matrix column order[i]; None where it is i

    @property
    def n_out(self) -> int:
        return self.codes.shape[0]
