"""The GPU kernels: right, how fast, and with which tiles:  python benchmarks/gpu_kernels.py      → results/gpu_kernels.json

Needs a CUDA device. Every kernel is compared with the reference; tiles are tried, and the best are kept in the user's cache, where products read them; then
products are timed against torch's own (cuBLAS, cuDNN) and de-quantizing against copying. Medians of interleaved repetitions by CUDA events,
second-level cache overwritten in between, as other layers would. --smoke runs all that in small on the CPU, in Triton's interpreter
(TRITON_INTERPRET=1); its times mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import RESULTS, keep

from sedaq.aq.formats import Format
from sedaq.kernels import bench, gpu, gpu_tiles
from sedaq.kernels.dispatch import PRECISIONS
from sedaq.kernels.gpu_tiles import Tiles
from sedaq.kernels.quantized_matrix import Geometry, QuantizedMatrix
from sedaq.kernels.reference import dequantize, product_by_dequantizing
from sedaq.kernels.timing import clock, interleaved_medians

FLUSHED = 1 << 29  # bytes written between timings: ten times the second-level cache, and time enough to launch what comes next
TUNED_FORMAT = "2x8g8"
CANDIDATES = {  # by place in gpu_tiles.UP_TO: tokens, rows, columns, warps, stages
    0: itertools.product((16,), (32, 64, 128), (64, 128), (4, 8), (3, 4)),
    1: itertools.product((32, 64), (64, 128), (32, 64), (4,), (3, 4)),
    2: itertools.product((64, 128), (64, 128), (32, 64), (4, 8), (3,)),
    3: itertools.product((128, 256), (64, 128, 256), (32, 64), (8,), (3,)),
}
DEQUANTIZING = itertools.product((0,), (16, 32, 64), (64, 128, 256), (4,), (1,))


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    shapes: Sequence[tuple[int, ...]] = bench.SHAPES
    tokens: Sequence[int] = bench.TOKENS
    formats: Sequence[str] = ("1x8g8", "2x8g8", "3x8g16", "4x8g8", "1x8g4")
    tuned_tokens: Sequence[int] = (16, 64, 256, 4096)  # one for each place of gpu_tiles.UP_TO, and above
    candidates: int = 1000  # at most, for each place
    repeats: int = 15


SMOKE = Sizes(((24, 40), (8, 4, 3)), (1, 20), ("2x8g8", "1x8g4"), (2, 20, 70, 300), 2, 1)


@dataclass(frozen=True)
class Case:
    """One layer at a number of tokens, on the device."""

    layer: str
    x: torch.Tensor
    matrix: QuantizedMatrix
    geometry: Geometry | None

    @classmethod
    def of(cls, shape: tuple[int, ...], tokens: int, format: str, device: torch.device) -> Case:
        parsed = Format.parse(format)
        made = bench._Case.of(shape, tokens, parsed.n_codebooks, parsed.n_entries, parsed.group_size)
        tensors = {name: part.to(device) for name, part in vars(made.matrix).items() if isinstance(part, torch.Tensor)}
        return cls(made.layer, made.x.to(device), replace(made.matrix, **tensors), made.geometry)

    def of_dtype(self, dtype: torch.dtype) -> Case:
        return replace(self, x=self.x.to(dtype))

    def product(self, kernel: str, tile: Tiles | None = None) -> Callable[[], torch.Tensor]:
        return partial(gpu.product, kernel, self.x, self.matrix, None, self.geometry, tile)

    def peer(self) -> Callable[[], torch.Tensor]:
        """torch's own product with the dense weight."""
        dense = dequantize(self.matrix).to(self.x.dtype)
        if self.geometry is None:
            return partial(torch.nn.functional.linear, self.x, dense)
        weight = dense.reshape(len(dense), -1, *self.geometry.kernel).contiguous(memory_format=torch.channels_last)
        return partial(torch.nn.functional.conv2d, self.x.movedim(-1, 1), weight, None, 1, self.geometry.padding)

    def error(self, found: torch.Tensor) -> float:
        double = replace(self.matrix, codebooks=self.matrix.codebooks.double())
        exact = product_by_dequantizing(self.x.double(), double, None, self.geometry)
        return ((found.double() - exact).norm() / exact.norm()).item()

    def memory_ratio(self) -> float:
        """Bytes that the product keeps for the weight, over those of the weight in 16 bits."""
        made = gpu._prepared[self.matrix.codes][-1]
        kept = [self.matrix.codes, made.scales, *made._books.values(), *(table for table, _ in made._tables.values())]
        return sum(part.nbytes for part in kept) / (2 * self.matrix.n_out * self.matrix.n_in)


def medians(functions: dict[Any, Callable[[], Any]], repeats: int, device: torch.device) -> dict[Any, float]:
    """Milliseconds of each function on the device: A B C A B C …, one warm-up round, median."""
    if device.type == "cpu":
        return interleaved_medians(functions, repeats)
    flush = torch.empty(FLUSHED, dtype=torch.uint8, device=device)
    rounds: list[dict[Any, tuple[torch.cuda.Event, torch.cuda.Event]]] = []
    for _ in range(repeats + 1):
        rounds.append({})
        for name, function in functions.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            start.record()
            function()
            end.record()
            rounds[-1][name] = (start, end)
        torch.cuda.synchronize(device)
    return {name: statistics.median(events[name][0].elapsed_time(events[name][1]) for events in rounds[1:]) for name in functions}


def host_microseconds(function: Callable[[], Any], device: torch.device, calls: int = 50) -> float:
    """Of the processor for one launch, the device not waited for."""
    start = clock()
    for _ in range(calls if device.type == "cuda" else 1):
        function()
    seconds = clock() - start
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e6 * seconds / (calls if device.type == "cuda" else 1)


def dtypes(device: torch.device) -> dict[str, torch.dtype]:
    """Inputs of each kernel; the interpreter knows no bfloat16."""
    return {"f32-gpu": torch.float32, "bf16-gpu": torch.bfloat16 if device.type == "cuda" else torch.float16}


def tune(sizes: Sizes, device: torch.device) -> dict[str, Tiles]:
    """The tiles of least time relative to the default's, as a geometric mean over shapes."""
    best: dict[str, Tiles] = {}
    candidates = {place: [Tiles(*numbers) for numbers in found][: sizes.candidates] for place, found in CANDIDATES.items()}
    for (kernel, dtype), (place, tokens) in itertools.product(dtypes(device).items(), enumerate(sizes.tuned_tokens)):
        bits = 8 * dtype.itemsize
        default = gpu_tiles.DEFAULTS[bits][place]
        shapes = [shape for shape in sizes.shapes if len(shape) == 2 or tokens >= bench.SIDE**2]
        cases = [case.of_dtype(dtype) for case in (Case.of(shape, tokens, TUNED_FORMAT, device) for shape in shapes)]
        made = {tile: [case.product(kernel, tile) for case in cases] for tile in dict.fromkeys([default, *candidates[place]])}
        best[f"{bits} {place}"] = fastest(made, default, sizes.repeats, device)
        print(f"{kernel}, {tokens} tokens: {best[f'{bits} {place}']}", flush=True)
    linear = [Case.of(shape, 1, TUNED_FORMAT, device) for shape in sizes.shapes if len(shape) == 2]
    tiles = dict.fromkeys([gpu_tiles.DEQUANTIZE, *[Tiles(*numbers) for numbers in DEQUANTIZING][: sizes.candidates]])
    narrow = dtypes(device)["bf16-gpu"]
    calls = {tile: [partial(gpu.dequantize, case.matrix, narrow, tile) for case in linear] for tile in tiles}
    best["dequantize"] = fastest(calls, gpu_tiles.DEQUANTIZE, sizes.repeats, device)
    return best


def fastest(made: dict[Tiles, list[Callable[[], Any]]], default: Tiles, repeats: int, device: torch.device) -> Tiles:
    """Of the tiles that the device can run."""
    runnable = dict(made)
    for tile, calls in made.items():
        try:
            for call in calls:
                call()
        except Exception as error:  # too much shared memory, or a shape that the compiler refuses
            if tile == default:
                raise
            print(f"{tile} left out: {str(error).splitlines()[0][:100]}", flush=True)
            del runnable[tile]
    logarithms = dict.fromkeys(runnable, 0.0)
    for shape in range(len(made[default])):
        times = medians({tile: calls[shape] for tile, calls in runnable.items()}, repeats, device)
        for tile in runnable:
            logarithms[tile] += math.log(times[tile] / times[default])
    return min(logarithms, key=lambda tile: logarithms[tile])


def products(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """Rows of products. Raises ValueError where an error is above its class's."""
    rows = []
    for shape, tokens, format in itertools.product(sizes.shapes, sizes.tokens, sizes.formats):
        if len(shape) == 3 and tokens < bench.SIDE**2:
            continue
        whole = Case.of(shape, tokens, format, device)
        cases = {kernel: whole.of_dtype(dtype) for kernel, dtype in dtypes(device).items()}
        calls = {kernel: case.product(kernel) for kernel, case in cases.items()}
        errors = {kernel: case.error(calls[kernel]()) for kernel, case in cases.items()}
        for kernel, error in errors.items():
            if not error <= PRECISIONS[gpu.KERNELS[kernel]]:
                raise ValueError(f"{kernel} is wrong: relative error {error:.2g} for {whole.layer}, {tokens} tokens, {format}")
        peers = {("torch", kernel): case.peer() for kernel, case in cases.items()}
        times = medians({**calls, **peers}, sizes.repeats, device)
        for kernel, case in cases.items():
            row = {"layer": case.layer, "tokens": tokens, "format": format, "kernel": kernel, "dtype": str(case.x.dtype).split(".")[-1]}
            row |= {"ms": times[kernel], "torch_ms": times["torch", kernel], "ratio": times["torch", kernel] / times[kernel]}
            row |= {"rel_err": errors[kernel]}
            rows.append(row | {"host_us": host_microseconds(calls[kernel], device), "memory_ratio": case.memory_ratio()})
    return rows


def dequantizing(sizes: Sizes, device: torch.device) -> list[dict[str, Any]]:
    """Rows of de-quantizing: its bandwidth (codes read, weights written) as a share of that of a copy (read and written)."""
    rows = []
    dtype = dtypes(device)["bf16-gpu"]
    for shape, format in itertools.product(sizes.shapes, sizes.formats):
        case = Case.of(shape, 1, format, device)
        dense = gpu.dequantize(case.matrix, dtype)
        reference = dequantize(case.matrix)
        error = ((dense.float() - reference).norm() / reference.norm()).item()
        if not error <= PRECISIONS["bf16"]:
            raise ValueError(f"dequantize is wrong: relative error {error:.2g} for {case.layer}, {format}")
        other = torch.empty_like(dense)
        calls = {"ours": partial(gpu.dequantize, case.matrix, dtype), "copy": partial(other.copy_, dense)}
        times = medians(calls, sizes.repeats, device)
        bandwidth = (case.matrix.codes.nbytes + dense.nbytes) / times["ours"]
        share = bandwidth / (2 * dense.nbytes / times["copy"])
        rows.append(
            {"layer": case.layer, "format": format, "kernel": "dequantize", "ms": times["ours"], "copy_ms": times["copy"]}
            | {"gigabytes_per_second": bandwidth / 1e6, "share_of_copy": share, "rel_err": error}
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small, on the CPU, in Triton's interpreter")
    parser.add_argument("--no-tuning", action="store_true", help="time the tiles that are in use")
    arguments = parser.parse_args()
    device, sizes, folder = torch.device("cuda"), Sizes(), RESULTS
    if arguments.smoke:
        device, sizes, folder, bench.SIDE = torch.device("cpu"), SMOKE, Path(tempfile.mkdtemp()), 4
    elif not torch.cuda.is_available() or not gpu.available(device):
        print("no accelerator: this measures on a CUDA device, with triton installed", file=sys.stderr)
        return 2
    found: dict[str, Tiles] = {}
    with torch.inference_mode():
        if not arguments.no_tuning:
            found = tune(sizes, device)
            gpu_tiles.keep(found, device)
        rows = [{"kernel": "tiles", "for": key, **asdict(tile)} for key, tile in found.items()]
        rows += [*products(sizes, device), *dequantizing(sizes, device)]
    for row in rows:
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    keep("gpu_kernels", "python benchmarks/gpu_kernels.py", rows, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
