"""Measurements of the quantizer itself: distortion on a Gaussian source, and error and time on real and fixed layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from ...kernels.timing import clock
from ...models.hessian import Hessian
from ...progress import track
from ..encoder.encoder import encode
from ..encoder.objective import Objective
from ..formats import Format
from ..plans.menu_choice import best_format

DISTORTION_FORMATS = ("3x8g16", "2x8g8", "4x8g16", "3x8g8", "4x8g8")


def distortion(
    formats: Sequence[str] = DISTORTION_FORMATS, *, size: int = 2048, effort: str = "fast", seed: int = 0
) -> list[dict[str, Any]]:
    """Mean squared error per unit variance on an i.i.d. N(0, 1) matrix (size, size) under the identity Hessian.

    `limit` is the rate–distortion bound 2^(−2R) of a Gaussian source at the format's code bits R.
    """
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    # In blocks, or else products with zeros would take most of the time.
    identity = Hessian(tuple(torch.eye(len(piece)).unsqueeze(0) for piece in torch.arange(size).split(128)))
    rows = []
    for text in track(formats, "distortion"):
        format = Format.parse(text)
        start = clock()
        encoding = encode(weight, format, identity, effort=effort, seed=seed)
        seconds = clock() - start
        rate = format.n_codebooks * format.code_bits / format.group_size
        rows.append(
            {
                "format": text,
                "effort": effort,
                "size": size,
                "bits_per_weight": format.bits_per_weight((size, size)),
                "mse": (encoding.dequantize() - weight.cpu()).square().mean().item(),
                "limit": 2.0 ** (-2 * rate),
                "seconds": round(seconds, 2),
            }
        )
    return rows


# What AQLM's own engine reaches on the fixed layers: error, seconds (its defaults, beam 8, two Zen 4 cores, torch 2.13).
AQLM = {
    (384, 384, "2x8g8"): (0.0483, 12.0),
    (384, 384, "3x8g16"): (0.0731, 10.0),
    (384, 384, "3x8g8"): (0.0145, 22.0),
    (384, 384, "4x8g8"): (0.00441, 21.0),
    (512, 2048, "2x8g8"): (0.0463, 497.0),
    (1152, 1152, "2x8g8"): (0.0517, 216.0),
}


def fixed_layer(n_out: int, n_in: int, *, seed: int = 0, n_tokens: int = 4096) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer that encoders are compared on: heavy-tailed weights (n_out, n_in), and H of inputs that are correlated along channels, one
    channel in 64 four times as strong. AQLM was run on the same numbers, so the order of the draws is part of the definition."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_out, n_in, generator=rng) * (torch.rand(n_out, 1, generator=rng) + 0.5) / math.sqrt(n_in)
    weight *= torch.randn(n_out, n_in, generator=rng).abs() / 2 + 1
    x = torch.randn(n_tokens, n_in, generator=rng)
    for before, channel in itertools.pairwise(x.unbind(1)):
        channel.mul_(0.8).add_(before, alpha=0.6)
    x[:, torch.randperm(n_in, generator=rng)[: max(1, n_in // 64)]] *= 4
    return weight, x.T @ x / n_tokens


def encoding(
    cases: Sequence[tuple[tuple[int, int], str | float]],
    *,
    efforts: Sequence[str] = ("fast", "full"),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Relative output error and seconds on `fixed_layer`, for each effort.

    Args:
        cases: a shape (out, in), and a format, or total bits for the best format within them by the menu's own measurement.
    """
    rows = []
    for (shape, what), effort in track([(case, effort) for case in cases for effort in efforts], "encoding"):
        weight, hessian = fixed_layer(*shape, seed=seed)
        format = Format.parse(what) if isinstance(what, str) else best_format(Objective.of(weight, hessian), what, seed=seed)
        start = clock()
        made = encode(weight, format, hessian, effort=effort, seed=seed)
        row = {
            "shape": list(shape),
            "format": str(format),
            "effort": effort,
            "bits_per_weight": format.bits_per_weight(shape),
            "rel_err_out": made.error,
            "seconds": round(clock() - start, 2),
        }
        if (*shape, what) in AQLM:
            row["aqlm_error"], row["aqlm_seconds"] = AQLM[*shape, str(what)]
        rows.append(row)
    return rows
