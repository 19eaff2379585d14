"""The linear layers of one DiT-XL/2 block:  python benchmarks/dit_block.py [--threads 2]      → results/dit_block.json

256 tokens, the modulation (1152 → 6912) at one token, six blocks with weights of their own, so that caches are cold. Milliseconds a block through the dispatcher,
in each class of arithmetic, against torch's products; interleaved, medians.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from results import keep

from sedaq.aq.formats import Format
from sedaq.kernels.bench import interleaved_medians
from sedaq.kernels.coded import CodedMatrix
from sedaq.kernels.costs import random_matrix
from sedaq.kernels.dispatch import product
from sedaq.kernels.reference import dequantize

LAYERS = [(1152, 1152, 256)] * 4 + [(4608, 1152, 256), (1152, 4608, 256), (6912, 1152, 1)]  # out, in, tokens
FORMATS = ("1x8g8", "1x8g8h", "3x8g16", "3x8g16h", "2x8g8", "2x8g8h", "4x8g8", "4x8g8h")


def run(calls: list[Callable[[], Any]]) -> None:
    for call in calls:
        call()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--name", default="dit_block")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # of the deprecation of torch's 8-bit product
    rows = []
    for text in FORMATS:
        f = Format.parse(text)
        matrices: list[tuple[CodedMatrix, torch.Tensor]] = [
            (random_matrix(n_out, n_in, f.n_codebooks, f.n_entries, f.group_size, f.structure, seed=block), torch.randn(tokens, n_in))
            for block in range(arguments.blocks)
            for n_out, n_in, tokens in LAYERS
        ]
        dense = [dequantize(matrix) for matrix, _ in matrices]
        int8 = []
        for weight in dense:
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.copy_(weight)
            int8.append(torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(linear), {torch.nn.Linear}, dtype=torch.qint8))
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
        times = interleaved_medians({name: partial(run, calls) for name, calls in functions.items()}, arguments.repeats)
        ms = {name: value / arguments.blocks for name, value in times.items()}
        ratios = {ours: ms[peer] / ms[ours] for ours, peer in (("exact", "torch_f32"), ("bf16", "torch_bf16"), ("a8", "torch_int8"))}
        rows.append({"format": text, "threads": arguments.threads, "ms_a_block": ms, "ratio": ratios})
        print(rows[-1], flush=True)
    keep(arguments.name, "python benchmarks/dit_block.py", rows)


if __name__ == "__main__":
    main()
