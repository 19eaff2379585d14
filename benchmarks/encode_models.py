"""Seconds to encode models of real size:  python benchmarks/encode_models.py

Encodes one layer of each shape that DiT-XL/2, SDXL's U-Net and FLUX.1-dev have (random weights, correlated inputs; the architectures as
diffusers builds them, without weights), measures seconds and memory in a process of its own, and adds up layer counts. Shapes above --largest weights are not
run: they are taken at the seconds per weight of the nearest width, and the row says so. Shapes that results/encode_models.json has are not measured
again, unless --fresh is given.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, UNet2DConditionModel
from results import keep

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format
from sedaq.kernels.timing import clock
from sedaq.models.hessian import Hessian, block_edges
from sedaq.models.layers import KINDS

KEPT = Path(__file__).parent / "results" / "encode_models.json"
MEASURED = ("seconds", "error", "peak_mb", "before_mb")
DIT_XL = {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28, "sample_size": 32}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def shapes_of(model: torch.nn.Module) -> collections.Counter[tuple[int, ...]]:
    return collections.Counter(tuple(module.weight.shape) for module in model.modules() if type(module) in KINDS)


def measure(shape: tuple[int, ...], text: str) -> dict[str, Any]:
    """Seconds and memory of one encoding, in this process."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=rng)
    blocks = []
    for start, stop in zip(block_edges(shape), block_edges(shape)[1:], strict=False):
        x = torch.randn(4096, stop - start, generator=rng)
        x = x + 0.6 * x.roll(1, 1)
        blocks.append((x.T @ x / len(x) + 0.1 * torch.eye(stop - start)).unsqueeze(0))
    hessian = Hessian(tuple(blocks))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start_time = clock()
    made = encode(weight, Format.parse(text), hessian)
    seconds = clock() - start_time
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "error": made.error, "peak_mb": peak / 1024, "before_mb": before / 1024}


def measured_apart(shape: tuple[int, ...], text: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", json.dumps(shape), "--formats", text]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="+", default=["1x8g4"])
    parser.add_argument("--largest", type=float, default=60e6, help="weights of a layer that is run")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(tuple(json.loads(arguments.one)), arguments.formats[0])))
        return
    with torch.device("meta"):
        models: dict[str, torch.nn.Module] = {"DiT-XL/2": DiTTransformer2DModel(**DIT_XL), "SDXL U-Net": UNet2DConditionModel(**SDXL)}
        models["FLUX.1-dev"] = FluxTransformer2DModel(guidance_embeds=True)
    counts = {name: shapes_of(model) for name, model in models.items()}
    result: list[dict[str, Any]] = []
    known = [] if arguments.fresh or not KEPT.exists() else json.loads(KEPT.read_text())["rows"]
    for text in arguments.formats:
        rows: dict[tuple[int, ...], dict[str, Any]] = {}
        for shape in sorted({shape for found in counts.values() for shape in found}, key=math.prod):
            if 1e5 < math.prod(shape) <= arguments.largest:
                before = [row for row in known if row.get("shape") == list(shape) and row["format"] == text]
                rows[shape] = {name: before[0][name] for name in MEASURED} if before else measured_apart(shape, text)
                print(text, shape, rows[shape], flush=True)
        for name, found in counts.items():
            total, estimated = 0.0, 0
            for shape, count in found.items():
                nearest = min(rows, key=lambda row: (abs(math.log(math.prod(row[1:]) / math.prod(shape[1:]))), -math.prod(row)))
                total += count * rows[nearest]["seconds"] * math.prod(shape) / math.prod(nearest)
                estimated += count * math.prod(shape) * (shape not in rows)
            n_weights = sum(count * math.prod(shape) for shape, count in found.items())
            result.append(
                {"model": name, "format": text, "n_weights": n_weights, "seconds": total, "share_estimated": estimated / n_weights}
            )
            print(result[-1], flush=True)
        result += [{"shape": list(shape), "format": text, "n_weights": math.prod(shape), **row} for shape, row in rows.items()]
    keep("encode_models", f"python benchmarks/encode_models.py --formats {' '.join(arguments.formats)}", result)


if __name__ == "__main__":
    main()
