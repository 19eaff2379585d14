"""Models larger than memory:  python benchmarks/large_models.py [dit] [flux] [--blocks N]      → results/large_models.json

Random weights in bfloat16 shards, written one tensor at a time: a DiT of 2 GB, and FLUX.1-dev's sizes (23.8 GB; hours). Each is given a uniform plan of 2
bits and applied without calibration, by the command line in a process of its own whose peak of memory is told by the system. Folders lie in
build/large and are deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from results import RESULTS, keep

from sedaq.aq.tensor_files import write_tensors_in_turn
from sedaq.kernels.timing import clock

SHARD_BYTES = 5_000_000_000
ROOT = Path("build/large")


def dit(blocks: int | None) -> tuple[Any, Any]:
    config = {"num_layers": blocks or 40, "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8}
    with torch.device("meta"):
        return DiTTransformer2DModel(**config), DDIMScheduler()


def flux(blocks: int | None) -> tuple[Any, Any]:
    """The published sizes: 19 blocks of two streams and 38 of one."""
    config = {"guidance_embeds": True, **({"num_layers": blocks, "num_single_layers": 2 * blocks} if blocks else {})}
    with torch.device("meta"):
        return FluxTransformer2DModel(**config), FlowMatchEulerDiscreteScheduler()


def write_random(model: Any, scheduler: Any, folder: Path) -> list[int]:
    """A folder as save_pretrained writes it, in bfloat16. Returns the bytes of each shard."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save_config(folder)
    scheduler.save_pretrained(folder)
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name, tensor in model.state_dict().items():
        size += 2 * tensor.numel()
        if size > SHARD_BYTES:
            shards.append({})
            size = 2 * tensor.numel()
        shards[-1][name] = (torch.bfloat16, tuple(tensor.shape))
    names = ["diffusion_pytorch_model.safetensors"]
    if len(shards) > 1:
        names = [f"diffusion_pytorch_model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        where = {name: file for file, specs in zip(names, shards, strict=True) for name in specs}
        index = {"metadata": {"total_size": 2 * sum(t.numel() for t in model.state_dict().values())}, "weight_map": where}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for file, specs in zip(names, shards, strict=True):

        def random(name: str, specs: dict[str, Any] = specs) -> torch.Tensor:
            rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            return (0.02 * torch.randn(specs[name][1], generator=rng)).bfloat16()

        write_tensors_in_turn(folder / file, specs, random, {"format": "pt"})
    return [(folder / file).stat().st_size for file in names]


def measured(*command: str) -> dict[str, float]:
    """Seconds of a verb, and the most memory that its processes held at once: all of it, and what no file backs."""
    start = clock()
    process = subprocess.Popen([sys.executable, "-m", "sedaq", *command], env={**os.environ, "SEDAQ_CACHE": str(ROOT / "cache")})
    peak, anonymous = 0, 0

    def watch() -> None:
        nonlocal peak, anonymous
        while process.poll() is None:
            try:
                found = psutil.Process(process.pid)
                held = [p.memory_full_info() for p in (found, *found.children(recursive=True))]
            except psutil.Error:
                continue
            peak, anonymous = max(peak, sum(m.pss for m in held)), max(anonymous, sum(m.uss for m in held))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait():
        raise SystemExit(f"sedaq {' '.join(command)} failed")
    watcher.join()
    return {"seconds": clock() - start, "peak_bytes": peak, "own_bytes": anonymous}


def row_of(name: str, blocks: int | None) -> dict[str, Any]:
    folder, out = ROOT / name, ROOT / f"{name}-small"
    build = {"dit": dit, "flux": flux}[name]
    model, scheduler = build(blocks)
    shards = write_random(model, scheduler, folder)
    planned = measured("search", str(folder), "--uniform", "--bits", "2", "--out", str(ROOT / "plan.json"))
    applied = measured("apply", str(folder), str(ROOT / "plan.json"), "--hessian", "none", "--out", str(out))
    size = (out / "diffusion_pytorch_model.safetensors").stat().st_size
    n_weights = sum(tensor.numel() for tensor in model.state_dict().values())
    row = {
        "model": name,
        "blocks": blocks,
        "n_weights": n_weights,
        "shard_bytes": shards,
        "size_bytes": size,
        "search": planned,
        "apply": applied,
    }
    for path in (folder, out, ROOT / "cache"):
        shutil.rmtree(path, ignore_errors=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=["dit", "flux", []], default=["dit"])
    parser.add_argument("--blocks", type=int, help="fewer than the whole model has")
    arguments = parser.parse_args()
    path = RESULTS / "large_models.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for name in arguments.models:
        made = row_of(name, arguments.blocks)
        print(made, flush=True)
        rows = [row for row in rows if (row["model"], row["blocks"]) != (name, arguments.blocks)] + [made]
        keep("large_models", "python benchmarks/large_models.py", rows)


if __name__ == "__main__":
    main()
