"""Time of every kernel against torch's own products: medians of interleaved repetitions, ratios within one run."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..progress import track
from . import dispatch, native
from .coded import CodedMatrix, Geometry
from .costs import random_matrix
from .dispatch import IN_TORCH, KERNELS
from .reference import dequantize

# (out, in) or (out, in, kernel): DiT-XL/2's layers, a feed-forward of SDXL and one of its convolutions, on images of 32×32
SHAPES: tuple[tuple[int, ...], ...] = ((1152, 1152), (4608, 1152), (1152, 4608), (10240, 1280), (320, 320, 3))
SIDE = 32
TOKENS = (1, 16, 256, 1024, 4096)
REFERENCE_TOKENS = 16  # the reference's loops over groups take too long above


def interleaved_medians(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Milliseconds of each function: A B C A B C …, one warm-up round, median."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_ > 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


@dataclass(frozen=True)
class _Case:
    """One layer at a number of tokens; images for a convolution."""

    layer: str
    x: torch.Tensor
    matrix: CodedMatrix
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
        linear = torch.nn.Linear(dense.shape[1], dense.shape[0], bias=False)
        linear.weight.copy_(dense)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its deprecation; it is the 8-bit product that torch has on CPUs
            int8 = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(linear), {torch.nn.Linear}, dtype=torch.qint8)
        peers["torch_f32"] = partial(torch.nn.functional.linear, self.x, dense)
        peers["torch_bf16"] = partial(torch.nn.functional.linear, self.x.bfloat16(), dense.bfloat16())
        peers["torch_int8"] = partial(int8, self.x)
        return peers

    def ours(self, names: Sequence[str]) -> dict[str, Callable[[], Any]]:
        inputs = {"exact": self.x, "bf16": self.x.bfloat16(), "a8": self.x}
        return {name: partial(KERNELS[name].product, inputs[KERNELS[name].precision], self.matrix, None, self.geometry) for name in names}


@torch.inference_mode()
def compare(
    cases: Sequence[tuple[str, int, int, int, str]],
    *,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    tokens: Sequence[int] = TOKENS,
    kernels: Sequence[str] | None = None,
    repeats: int = 5,
) -> list[dict[str, Any]]:
    """Rows of `sedaq bench kernels`.

    Args:
        cases: (format text, M, K, g, structure).
        shapes: (out, in), or (out, in, size) for a convolution over images of 32×32.
        kernels: those to be timed; all that are here when None.

    Returns:
        {layer, tokens, format, kernel, precision, chosen, threads, ms, rel_err, ratio: {torch_f32, torch_bf16, torch_int8, dequant_f32}}: a ratio above 1 says
        that sedaq's kernel is faster than the column, null that torch has none; `chosen`, that the dispatcher takes it for its class.
    """
    rows = []
    for shape, n_tokens, (text, m, k, g, structure) in track([(s, t, c) for s in shapes for t in tokens for c in cases], "kernels"):
        if len(shape) == 3 and n_tokens < SIDE**2:
            continue
        case = _Case.of(shape, n_tokens, m, k, g, structure)
        known = [name for name in kernels or (*IN_TORCH, *native.available()) if name != "reference" or n_tokens <= REFERENCE_TOKENS]
        names = [name for name in known if name not in native.KERNELS or native.serves(name, case.matrix)]
        peers, ours = case.peers(), case.ours(names)
        times = interleaved_medians({**peers, **ours}, repeats)
        exact = KERNELS["dequantize"].product(
            case.x.double(), replace(case.matrix, codebooks=case.matrix.codebooks.double()), None, case.geometry
        )
        for name, run in ours.items():
            precision = KERNELS[name].precision
            rows.append(
                {
                    "layer": case.layer,
                    "tokens": n_tokens,
                    "format": text,
                    "kernel": name,
                    "precision": precision,
                    "chosen": dispatch.choose(case.x, n_tokens, case.matrix, precision) == name,
                    "threads": torch.get_num_threads(),
                    "ms": times[name],
                    "rel_err": ((run().double() - exact).norm() / exact.norm()).item(),
                    "ratio": {
                        peer: times[peer] / times[name] if peer in times else None
                        for peer in ("torch_f32", "torch_bf16", "torch_int8", "dequant_f32")
                    },
                }
            )
    return rows
