"""The kernels' table:  python benchmarks/kernels.py [--tokens …] [--formats …] [--threads 1 2]      → results/kernels.json

DiT-XL/2's layers, a feed-forward and a convolution of SDXL, against torch's own products in the same run. Structured codebooks cost the kernels what free
ones cost, so free ones stand for all.
"""

from __future__ import annotations

import argparse

import torch
from results import keep

from sedaq.aq.formats import Format
from sedaq.kernels import bench, native

FORMATS = ("1x8g8", "3x8g16", "2x8g8", "4x8g8", "1x8g4", "1x6g3", "1x8g2", "1x4g2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(bench.TOKENS))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    formats = [(text, Format.parse(text)) for text in arguments.formats]
    cases = [(text, f.n_codebooks, f.n_entries, f.group_size) for text, f in formats]
    kernels = [
        "dequantize",
        *(name for name in native.available() if name not in ("f32-portable", "f32-avx2") or "f32-avx512" not in native.available()),
    ]
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for shape in bench.SHAPES:
            rows += bench.compare(cases, shapes=[shape], tokens=arguments.tokens, kernels=kernels, repeats=arguments.repeats)
            print(threads, shape, "done", flush=True)
    keep("kernels", "python benchmarks/kernels.py", rows)


if __name__ == "__main__":
    main()
