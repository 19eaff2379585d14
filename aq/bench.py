"""Measurements of the quantizer itself: distortion on a Gaussian source, and error and time on real and fixed layers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ..models.subject import Subject
from ..progress import track
from .encoder import encode
from .formats import Format

DISTORTION_FORMATS = ("3x8g16", "2x8g8", "4x8g16", "3x8g8", "4x8g8")


def distortion(
    formats: Sequence[str] = DISTORTION_FORMATS, *, size: int = 2048, effort: str = "fast", seed: int = 0
) -> list[dict[str, Any]]:
    """Mean squared error per unit variance on an i.i.d. N(0, 1) matrix (size, size) under the identity Hessian.

    `limit` is the rate–distortion bound 2^(−2R) of a Gaussian source at the format's code bits R.
    """
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    rows = []
    for text in track(formats, "distortion"):
        format = Format.parse(text)
        start = time.perf_counter()
        encoding = encode(weight, format, effort=effort, seed=seed)
        seconds = time.perf_counter() - start
        rate = format.n_codebooks * format.code_bits / format.group_size
        rows.append(
            {
                "format": text,
                "effort": effort,
                "size": size,
                "bits_per_weight": format.bits_per_weight((size, size)),
                "mse": (encoding.dequantize() - weight).square().mean().item(),
                "limit": 2.0 ** (-2 * rate),
                "seconds": round(seconds, 2),
            }
        )
    return rows


def correlated_layer(n_out: int, n_in: int, *, seed: int = 0, n_tokens: int = 4096) -> tuple[torch.Tensor, torch.Tensor]:
    """A stand-in for a trained layer: heavy-tailed weights (n_out, n_in) and H of inputs that are correlated, a few of them strong."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_out, n_in, generator=rng) * (1 + 0.5 * torch.randn(n_out, n_in, generator=rng).abs()) / n_in**0.5
    x = torch.randn(n_tokens, n_in, generator=rng)
    mixing = torch.linalg.matrix_power(torch.eye(n_in) * 0.8 + torch.diag(torch.full((n_in - 1,), 0.6), 1), 2)
    x = x @ mixing
    x[:, torch.randperm(n_in, generator=rng)[: max(1, n_in // 64)]] *= 4
    return weight, x.T @ x / n_tokens


def encoding(
    shapes: Sequence[tuple[int, int]], formats: Sequence[str], *, efforts: Sequence[str] = ("fast", "full"), seed: int = 0
) -> list[dict[str, Any]]:
    """Relative output error and seconds of each shape, format and effort on `correlated_layer`."""
    rows = []
    cases = [(shape, text, effort) for shape in shapes for text in formats for effort in efforts]
    for shape, text, effort in track(cases, "encoding"):
        weight, hessian = correlated_layer(*shape, seed=seed)
        start = time.perf_counter()
        made = encode(weight, Format.parse(text), hessian, effort=effort, seed=seed)
        rows.append(
            {
                "shape": list(shape),
                "format": text,
                "effort": effort,
                "bits_per_weight": made.format.bits_per_weight(shape),
                "rel_err_out": made.error,
                "seconds": round(time.perf_counter() - start, 2),
            }
        )
    return rows


def model_step(subject: Subject, *, n_images: int = 64, repeats: int = 3) -> dict[str, float]:
    """Seconds of one sampling step, median over `repeats` samplings of `n_images` images with 4 steps."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subject.sample(seed=0, n_images=n_images, steps=4)
        times.append((time.perf_counter() - start) / 4)
    return {"seconds_per_step": sorted(times)[len(times) // 2], "n_images": n_images}
