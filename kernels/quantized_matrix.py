"""The forms in which kernels see a quantized weight, and the positions of a convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix (out, in) as scaled sums of codewords: row r, group j is scales[r] · Σ_m codebooks[m, codes[r, j, m]].

    A convolution is the matrix (out, in·kh·kw) of its flattened weight.
    """

    codes: torch.Tensor  # (out, G, M) of any integer type
    codebooks: torch.Tensor  # (M, K, g) float32
    scales: torch.Tensor  # (out,) float32
    n_in: int  # columns without padding, at most G·g
    order: torch.Tensor | None = None  # (in,) int64: coded column i is matrix column order[i]; None where it is i
    structure: str = ""  # of every codebook: free, "m" c[k + K/2] = −c[k], or "h" c[h √K + l] = c[h √K] + c[l] − c[0]
    taps: int = 1  # of a convolution: the matrix columns of one input channel lie side by side
    cost_model: str = ""  # of kernels, where one came with a diffusion model: a name that cost_model.adopt gave

    @property
    def n_out(self) -> int:
        """Rows."""
        return self.codes.shape[0]


@dataclass(frozen=True)
class Geometry:
    """How tokens of a convolution are cut from images; one number for each axis. Zeros are outside."""

    kernel: tuple[int, ...]
    step: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def out_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The output's size by axis for an input of `size`."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, self.kernel, self.step, self.padding, self.dilation, strict=True)
        )

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """Every token's inputs: images (N, *size, channels) → (N, *out_size, channels · taps), taps innermost."""
        n_axes = len(self.kernel)
        x = torch.nn.functional.pad(x, [0, 0, *(p for padding in reversed(self.padding) for p in (padding, padding))])
        for axis, (kernel, step, dilation) in enumerate(zip(self.kernel, self.step, self.dilation, strict=True), start=1):
            x = x.unfold(axis, dilation * (kernel - 1) + 1, step)[..., ::dilation]  # the window comes last
        return x.reshape(*x.shape[: n_axes + 1], x.shape[n_axes + 1] * math.prod(self.kernel))
