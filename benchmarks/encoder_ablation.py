"""What each part of the encoder is worth:  python benchmarks/encoder_ablation.py

One part is changed at a time, at fast effort: error, and seconds, on the fixed 384×384 layer and on four layers of the shipped models.
Then both groupings of convolutions, for every 3×3 convolution of mnist-unet.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from results import keep

import sedaq
from sedaq.aq.encoder import encoder, kmeans
from sedaq.aq.encoder.beam import Beam
from sedaq.aq.encoder.part import Part
from sedaq.aq.formats import Format
from sedaq.aq.profiling.bench import fixed_layer
from sedaq.kernels.timing import clock
from sedaq.models.calibration import calibrate
from sedaq.models.hessian import BlockDiagonal, Hessian
from sedaq.models.layers import Layer
from sedaq.models.sampling import SamplingConfig

FAST = encoder.EFFORTS["fast"]
Case = tuple[str, torch.Tensor, Hessian, int]  # name, weight, H, conv groups


def start_metric(metric: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    made = kmeans.Cloud.of

    def of(part: Any, g: int, n_rows: int) -> kmeans.Cloud:
        cloud = made(part, g, n_rows)
        return kmeans.Cloud(cloud.vectors, metric(cloud.metric), cloud.mass)

    return mock.patch.object(kmeans.Cloud, "of", of)


def diagonal(metric: torch.Tensor) -> torch.Tensor:
    return torch.diag_embed(metric.diagonal(dim1=1, dim2=2))


def groups_alone(format: Format) -> Any:
    """Error feedback off: the factor of H's g×g blocks."""

    def factor(self: Hessian, damping: float = 0.0, cholesky: Any = None) -> BlockDiagonal:
        g = format.group_size
        return BlockDiagonal(tuple(torch.linalg.cholesky(self.window(a, a + g).flip(1, 2)).flip(1, 2) for a in range(0, self.n_in, g)))

    return mock.patch.object(Hessian, "factor", factor)


def variants(format: Format) -> dict[str, Any]:
    """Name → a context in which `encode` is changed, or an effort."""
    several = format.n_codebooks > 1
    shown: dict[str, Any] = {
        "fast": FAST,
        "start: plain metric": start_metric(lambda metric: torch.eye(metric.shape[1]).expand_as(metric).contiguous()),
        "start: diagonal of H": start_metric(diagonal),
        "no error feedback": groups_alone(format),
        "no second choice of codes": mock.patch.object(Part, "improve", lambda part, books, kept: None),
        "no least squares": mock.patch.object(encoder, "fit_codebooks", lambda parts, stored, format, iterations: stored),
    }
    for width in (1, 4, 8, 16):
        shown[f"beam {width}"] = replace(FAST, several=Beam(width, 1), one=Beam(1, width))
    if several:
        shown["beam 8, 4 across groups"] = replace(FAST, several=Beam(8, 4))
    for rounds in (0, 1, 4, 8):
        shown[f"{rounds} rounds"] = replace(FAST, rounds=rounds)
    return shown


@contextlib.contextmanager
def in_force(variant: Any) -> Iterator[None]:
    if isinstance(variant, encoder.Effort):
        variant = mock.patch.dict(encoder.EFFORTS, {"fast": variant})
    with variant:
        yield


def cases() -> list[Case]:
    weight, hessian = fixed_layer(384, 384)
    found: list[Case] = [("fixed 384×384", weight, Hessian.of(hessian), 1)]
    chosen = {
        "mnist-dit": ("transformer_blocks.1.attn1.to_q", "transformer_blocks.2.ff.net.0.proj"),
        "mnist-unet": ("down_blocks.2.resnets.0.conv2", "up_blocks.0.resnets.0.conv1"),
    }
    for name, paths in chosen.items():
        subject = sedaq.load(name)
        layers = [layer for layer in subject.layers if layer.name in paths]
        found += [
            (f"{name} {layer.name}", subject.weight(layer.name), h, layer.groups)
            for layer, h in calibrate(subject, layers, sampling=SamplingConfig(steps=10))
        ]
    return found


def measure(case: Case, format: Format) -> dict[str, float]:
    _, weight, hessian, groups = case
    start = clock()
    made = encoder.encode(weight, format, hessian, groups=groups)
    return {"error": made.error, "seconds": clock() - start}


def parts(formats: list[str]) -> list[dict[str, Any]]:
    rows = []
    for case in cases():
        for text in formats:
            format = Format.parse(text)
            for name, variant in variants(format).items():
                with in_force(variant):
                    rows.append({"layer": case[0], "format": text, "variant": name, **measure(case, format)})
                print(rows[-1], flush=True)
    return rows


def groupings() -> list[dict[str, Any]]:
    """Tap and channel groups at equal code bits, by total bits."""
    subject = sedaq.load("mnist-unet")
    layers: list[Layer] = [layer for layer in subject.layers if layer.shape[2:] == (3, 3)]
    rows = []
    for layer, hessian in calibrate(subject, layers, sampling=SamplingConfig(steps=10)):
        case = (layer.name, subject.weight(layer.name), hessian, layer.groups)
        for text in ("2x6g9t", "2x6g9c", "2x7g9t", "2x6g8c", "3x6g9t", "3x6g9c", "1x6g3c"):
            format = Format.parse(text)
            bits = format.bits_per_weight(layer.shape)
            rows.append({"layer": layer.name, "shape": list(layer.shape), "format": text, "bits": bits, **measure(case, format)})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="+", default=["1x6g3", "2x6g6"])
    arguments = parser.parse_args()
    keep("encoder_ablation", "python benchmarks/encoder_ablation.py", {"parts": parts(arguments.formats), "groupings": groupings()})


if __name__ == "__main__":
    main()
