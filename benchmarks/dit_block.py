"""The linear layers of one DiT-XL/2 block:  python benchmarks/dit_block.py [--threads 2]      → results/dit_block.json

256 tokens, the modulation (1152 → 6912) at one token, six blocks with weights of their own, so that caches are cold. Milliseconds a block through the dispatcher,
in each class of arithmetic, against torch's products; interleaved, medians.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from results import keep

from sedaq.aq.formats import Format
from sedaq.kernels.bench import torch_int8
from sedaq.kernels.cost_model import random_matrix
from sedaq.kernels.dispatch import product
from sedaq.kernels.quantized_matrix import QuantizedMatrix
from sedaq.kernels.reference import dequantize
from sedaq.kernels.timing import interleaved_medians

LAYERS = [(1152, 1152)] * 4 + [(4608, 1152), (1152, 4608)]  # out, in; of every token
MODULATION = (6912, 1152)  # of one
PEERS = {"exact": "torch_f32", "bf16": "torch_bf16", "a8": "torch_int8"}
FORMATS = ("1x8g8", "1x8g8h", "3x8g16", "3x8g16h", "2x8g8", "2x8g8h", "4x8g8", "4x8g8h")


def run(calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        call()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--classes", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--name", default="dit_block")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for text in arguments.formats:
        f = Format.parse(text)
        matrices: list[tuple[QuantizedMatrix, torch.Tensor]] = [
            (random_matrix(n_out, n_in, f.n_codebooks, f.n_entries, f.group_size, f.structure, seed=block), torch.randn(tokens, n_in))
            for block in range(arguments.blocks)
            for n_out, n_in, tokens in [*((*layer, arguments.tokens) for layer in LAYERS), (*MODULATION, 1)]
        ]
        dense = [dequantize(matrix) for matrix, _ in matrices]
        int8 = [torch_int8(weight) for weight in dense]
        linear = torch.nn.functional.linear
        inputs = [x for _, x in matrices]
        narrow = [(x.bfloat16(), weight.bfloat16()) for x, weight in zip(inputs, dense, strict=True)]
        functions: dict[str, list[Callable[[], Any]]] = {
            "torch_f32": [partial(linear, x, weight) for x, weight in zip(inputs, dense, strict=True)],
            "torch_bf16": [partial(linear, x, weight) for x, weight in narrow],
            "torch_int8": [partial(module, x) for module, x in zip(int8, inputs, strict=True)],
            "exact": [partial(product, x, matrix) for matrix, x in matrices],
            "bf16": [partial(product, x, matrix, None, None, "bf16") for (matrix, _), (x, _) in zip(matrices, narrow, strict=True)],
            "a8": [partial(product, x, matrix, None, None, "a8") for matrix, x in matrices],
        }
        wanted = {*arguments.classes, *(PEERS[precision] for precision in arguments.classes)}
        times = interleaved_medians({name: partial(run, calls) for name, calls in functions.items() if name in wanted}, arguments.repeats)
        ms = {name: value / arguments.blocks for name, value in times.items()}
        ratios = {precision: ms[PEERS[precision]] / ms[precision] for precision in arguments.classes}
        rows.append({"format": text, "threads": arguments.threads, "tokens": arguments.tokens, "ms_a_block": ms, "ratio": ratios})
        print(rows[-1], flush=True)
    keep(arguments.name, "python benchmarks/dit_block.py " + " ".join(sys.argv[1:]), rows)


if __name__ == "__main__":
    main()
