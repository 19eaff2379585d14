"""What a block-diagonal Hessian costs:  python benchmarks/block_hessian.py

Layers of more than 8,192 inputs keep H in diagonal blocks of whole channels. Here wide layers that fit are encoded under 1, 2, 4 and 8
blocks of their H; the relative output error is that under the whole H.
"""

from __future__ import annotations

from typing import Any

from results import keep

import sedaq
from sedaq.aq.encoder.encoder import encode, relative_error
from sedaq.aq.formats import Format
from sedaq.aq.profiling.bench import fixed_layer
from sedaq.models.calibration import calibrate
from sedaq.models.hessian import Hessian
from sedaq.models.sampling import SamplingConfig

CONVOLUTIONS = ("up_blocks.0.resnets.0.conv1", "up_blocks.0.resnets.1.conv1", "mid_block.resnets.0.conv1")


def main() -> None:
    weight, matrix = fixed_layer(512, 2048)
    cases = [("fixed 512×2048", weight, Hessian.of(matrix), 1)]
    unet = sedaq.load("mnist-unet")
    layers = [layer for layer in unet.layers if layer.name in CONVOLUTIONS]
    cases += [
        (f"mnist-unet {layer.name}", unet.weight(layer.name), h, layer.shape[1])
        for layer, h in calibrate(unet, layers, sampling=SamplingConfig(steps=10))
    ]
    rows: list[dict[str, Any]] = []
    for name, weight, whole, channels in cases:
        for n_blocks in (1, 2, 4, 8):
            per_channel = whole.n_in // channels
            n_units = channels if channels > 1 else whole.n_in
            width = per_channel if channels > 1 else 1
            edges = [width * (n_units * i // n_blocks) for i in range(n_blocks + 1)]
            parts = tuple(whole.blocks[0][:, a:b, a:b] for a, b in zip(edges, edges[1:], strict=False))
            # Tap groups keep the order of columns whatever the blocks.
            format = Format.parse("1x8g4" if weight.ndim == 2 else "2x7g9t")
            made = encode(weight, format, Hessian(parts))
            error = relative_error(weight, made.dequantize(), whole)
            rows.append({"layer": name, "inputs": whole.n_in, "blocks": n_blocks, "format": str(format), "error": error})
            print(rows[-1], flush=True)
    keep("block_hessian", "python benchmarks/block_hessian.py", rows)


if __name__ == "__main__":
    main()
