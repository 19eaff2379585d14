"""Time of every kernel against torch's own products: medians of interleaved repetitions, ratios within one run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..progress import track
from . import dispatch, native
from .cost_model import random_matrix
from .dispatch import IN_TORCH, KERNELS, PRECISIONS, product_by, usable
from .quantized_matrix import Geometry, QuantizedMatrix
from .reference import dequantize
from .timing import interleaved_medians

# (out, in) or (out, in, kernel): DiT-XL/2's layers, a feed-forward of SDXL and one of its convolutions, on images of 32×32
SHAPES: tuple[tuple[int, ...], ...] = ((1152, 1152), (4608, 1152), (1152, 4608), (10240, 1280), (320, 320, 3))
SIDE = 32
TOKENS = (1, 16, 256, 1024, 4096)
REFERENCE_TOKENS = 16  # the reference's loops over groups take too long above


@torch.no_grad()
def torch_int8(weight: torch.Tensor) -> torch.nn.Module:
    """Torch's dynamic 8-bit product by a matrix (out, in), of the engine FBGEMM: others are not on every machine."""
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.copy_(weight)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its deprecation; it is the 8-bit product that torch has on CPUs
            return torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(linear), {torch.nn.Linear}, dtype=torch.qint8)
    finally:
        torch.backends.quantized.engine = engine


@dataclass(frozen=True)
class _Case:
    """One layer at a number of tokens; images for a convolution."""

    layer: str
    x: torch.Tensor
    matrix: QuantizedMatrix
    geometry: Geometry | None

    @classmethod
    def of(cls, shape: tuple[int, ...], tokens: int, m: int, k: int, g: int, structure: str = "") -> _Case:
        rng = torch.Generator().manual_seed(1)
        n_out, n_in, *kernel = shape
        if not kernel:
            return cls(f"{n_in}->{n_out}", torch.randn(tokens, n_in, generator=rng), random_matrix(n_out, n_in, m, k, g, structure), None)
        size, taps = kernel[0], kernel[0] ** 2
        matrix = random_matrix(n_out, n_in * taps, m, k, g, structure)
        by_tap = torch.arange(n_in * taps).view(n_in, taps).T.reshape(-1)
        x = torch.randn(max(1, tokens // SIDE**2), SIDE, SIDE, n_in, generator=rng)
        geometry = Geometry((size, size), (1, 1), (size // 2, size // 2), (1, 1))
        return cls(f"{n_in}->{n_out} {size}x{size}", x, replace(matrix, order=by_tap, taps=taps), geometry)

    def peers(self) -> dict[str, Callable[[], Any]]:
        dense = dequantize(self.matrix)
        peers: dict[str, Callable[[], Any]] = {
            "dequant_f32": partial(KERNELS["dequantize"].product, self.x, self.matrix, None, self.geometry)
        }
        if self.geometry is not None:
            weight, x = (
                dense.reshape(len(dense), -1, *self.geometry.kernel).contiguous(memory_format=torch.channels_last),
                self.x.movedim(-1, 1),
            )
            for name, dtype in (("torch_f32", torch.float32), ("torch_bf16", torch.bfloat16)):
                peers[name] = partial(torch.nn.functional.conv2d, x.to(dtype), weight.to(dtype), None, 1, self.geometry.padding)
            return peers
        int8 = torch_int8(dense)
        peers["torch_f32"] = partial(torch.nn.functional.linear, self.x, dense)
        peers["torch_bf16"] = partial(torch.nn.functional.linear, self.x.bfloat16(), dense.bfloat16())
        peers["torch_int8"] = partial(int8, self.x)
        return peers

    def ours(self, kernels: Sequence[str] | None, precisions: Sequence[str]) -> dict[tuple[str, str], Callable[[], Any]]:
        """Products by (class, kernel): in every class its own kernels and finer ones. The reference is only in its own."""
        tokens = math.prod(self.x.shape[:-1])
        found: dict[tuple[str, str], Callable[[], Any]] = {}
        for precision in precisions:
            x = self.x.bfloat16() if precision == "bf16" else self.x
            for name in usable(x, precision):
                slow = name == "reference" and (precision != "exact" or tokens > REFERENCE_TOKENS)
                if (kernels is None or name in kernels) and not slow and (name in IN_TORCH or native.serves(name, self.matrix)):
                    found[precision, name] = partial(product_by, name, x, self.matrix, None, self.geometry, precision)
        return found


@torch.inference_mode()
def compare(
    cases: Sequence[tuple[str, int, int, int, str]],
    *,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    tokens: Sequence[int] = TOKENS,
    kernels: Sequence[str] | None = None,
    precisions: Sequence[str] = tuple(PRECISIONS),
    repeats: int = 5,
) -> list[dict[str, Any]]:
    """Rows of `sedaq bench kernels`.

    Args:
        cases: (format text, M, K, g, structure).
        shapes: (out, in), or (out, in, size) for a convolution over images of 32×32.
        kernels: those to be timed; all that are here when None. In every class of arithmetic its own are, and finer ones.
        precisions: classes of arithmetic.

    Returns:
        {layer, tokens, format, kernel, precision, chosen, threads, ms, rel_err, ratio: {torch_f32, torch_bf16, torch_int8, dequant_f32}}: a ratio above 1 says
        that sedaq's kernel is faster than the column, null that torch has none; `chosen`, that the dispatcher takes it when that class is asked for.
    """
    rows = []
    for shape, n_tokens, (text, m, k, g, structure) in track([(s, t, c) for s in shapes for t in tokens for c in cases], "kernels"):
        if len(shape) == 3 and n_tokens < SIDE**2:
            continue
        case = _Case.of(shape, n_tokens, m, k, g, structure)
        peers, ours = case.peers(), case.ours(kernels, precisions)
        times = interleaved_medians({**peers, **{"/".join(way): run for way, run in ours.items()}}, repeats)
        exact = KERNELS["dequantize"].product(
            case.x.double(), replace(case.matrix, codebooks=case.matrix.codebooks.double()), None, case.geometry
        )
        for (precision, name), run in ours.items():
            x = case.x.bfloat16() if precision == "bf16" else case.x
            ms = times[f"{precision}/{name}"]
            rows.append(
                {
                    "layer": case.layer,
                    "tokens": n_tokens,
                    "format": text,
                    "kernel": name,
                    "precision": precision,
                    "chosen": dispatch.choose(x, n_tokens, case.matrix, precision) == name,
                    "threads": torch.get_num_threads(),
                    "ms": ms,
                    "rel_err": ((run().double() - exact).norm() / exact.norm()).item(),
                    "ratio": {
                        peer: times[peer] / ms if peer in times else None
                        for peer in ("torch_f32", "torch_bf16", "torch_int8", "dequant_f32")
                    },
                }
            )
    return rows


def choices(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How well the dispatcher chose: rows of `compare` → {cases, within_1.1, worst}: the share of cases whose chosen kernel took at most 1.1 times
    what the fastest took of those that serve the class, and the greatest such ratio."""
    best: dict[tuple[Any, ...], float] = {}
    chosen: dict[tuple[Any, ...], float] = {}
    for row in rows:
        case = tuple(row[name] for name in ("layer", "tokens", "format", "precision", "threads"))
        best[case] = min(best.get(case, math.inf), row["ms"])
        if row["chosen"]:
            chosen[case] = row["ms"]
    ratios = [ms / best[case] for case, ms in chosen.items()]
    return {"cases": len(ratios), "within_1.1": sum(ratio <= 1.1 for ratio in ratios) / len(ratios), "worst": max(ratios)}
