"""Seconds of one probe (512 images, 10 steps) for candidates of a shipped model:  python benchmarks/probe_seconds.py

Untrained weights: time does not depend on them. The least of six repeats, at the better of batch sizes 64 and 128, channels last.
"""

from __future__ import annotations

from typing import Any

import torch
from results import keep

from sedaq.kernels.timing import clock
from sedaq.models.shipped.recipes import build_dit, build_unet

N_FORWARDS = 512 * 10
DITS = {"DiT width 128, 4 blocks": (4, 32, 4), "DiT width 128, 6 blocks": (4, 32, 6), "DiT width 160, 5 blocks": (5, 32, 5)}
UNETS = ((24, 48, 128), (16, 64, 128), (32, 64, 128), (48, 64, 128), (32, 128, 128))


def candidates() -> dict[str, Any]:
    """The shipped architectures with other widths and depths."""
    models = {}
    for name, (heads, head_dim, blocks) in DITS.items():
        config = {**build_dit().config, "num_attention_heads": heads, "attention_head_dim": head_dim, "num_layers": blocks}
        models[name] = type(build_dit()).from_config(config)
    for channels in UNETS:
        models["U-Net " + "/".join(map(str, channels))] = type(build_unet()).from_config(
            {**build_unet().config, "block_out_channels": channels}
        )
    return models


@torch.inference_mode()
def seconds(model: Any, batch_size: int, repeats: int = 6) -> float:
    x, t, y = torch.randn(batch_size, 1, 28, 28), torch.full((batch_size,), 500), torch.zeros(batch_size, dtype=torch.long)
    times = []
    for _ in range(repeats + 1):
        start = clock()
        model(x, t, class_labels=y)
        times.append(clock() - start)
    return min(times[1:]) / batch_size * N_FORWARDS


def main() -> None:
    rows = []
    for name, model in candidates().items():
        model.eval().to(memory_format=torch.channels_last)
        weights = sum(p.numel() for p in model.parameters())
        rows.append({"model": name, "parameters": weights, "seconds": round(min(seconds(model, size) for size in (64, 128)), 2)})
        print(rows[-1], flush=True)
    keep("probe_seconds", "python benchmarks/probe_seconds.py", rows)


if __name__ == "__main__":
    main()
