"""Time of every kernel against torch's own products: medians of interleaved repetitions, ratios within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..progress import track
from . import native
from .costs import random_matrix
from .dispatch import IN_TORCH, KERNELS
from .reference import dequantize, product_by_dequantizing

SHAPES = ((1152, 1152), (4608, 1152), (1152, 4608))  # (out, in): DiT-XL/2
TOKENS = (1, 16, 256)


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


@torch.inference_mode()
def compare(
    cases: Sequence[tuple[str, int, int, int]],
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    tokens: Sequence[int] = TOKENS,
    repeats: int = 5,
) -> list[dict[str, Any]]:
    """Rows of `sedaq bench kernels`.

    Args:
        cases: (format text, M, K, g).

    Returns:
        {layer, tokens, format, kernel, precision, threads, ms, rel_err, ratio: {torch_f32, torch_bf16, torch_int8, dequant_f32}}; a ratio above 1 says that
        sedaq's kernel is faster than the column.
    """
    rows = []
    for (n_out, n_in), n_tokens, (text, m, k, g) in track([(s, t, c) for s in shapes for t in tokens for c in cases], "kernels"):
        matrix = random_matrix(n_out, n_in, m, k, g)
        dense = dequantize(matrix)
        x = torch.randn(n_tokens, n_in, generator=torch.Generator().manual_seed(1))
        linear = torch.nn.Linear(n_in, n_out, bias=False)
        linear.weight.copy_(dense)
        int8 = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(linear), {torch.nn.Linear}, dtype=torch.qint8)
        dense16, x16 = dense.bfloat16(), x.bfloat16()
        peers: dict[str, Callable[[], Any]] = {
            "torch_f32": partial(torch.nn.functional.linear, x, dense),
            "torch_bf16": partial(torch.nn.functional.linear, x16, dense16),
            "torch_int8": partial(int8, x),
            "dequant_f32": partial(product_by_dequantizing, x, matrix),
        }
        ours: dict[str, Callable[[], Any]] = {
            name: partial(KERNELS[name].product, x, matrix, None, None) for name in (*IN_TORCH, *native.available())
        }
        times = interleaved_medians({**peers, **ours}, repeats)
        exact = x.double() @ dense.double().T
        for name, run in ours.items():
            error = ((run().double() - exact).norm() / exact.norm()).item()
            rows.append(
                {
                    "layer": f"{n_in}->{n_out}",
                    "tokens": n_tokens,
                    "format": text,
                    "kernel": name,
                    "precision": KERNELS[name].precision,
                    "threads": torch.get_num_threads(),
                    "ms": times[name],
                    "rel_err": error,
                    "ratio": {peer: times[peer] / times[name] for peer in peers},
                }
            )
    return rows
