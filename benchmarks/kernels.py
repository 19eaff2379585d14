"""The kernels' table:  python benchmarks/kernels.py [--tokens …] [--formats …] [--threads 1 2]      → results/kernels.json

DiT-XL/2's layers, a feed-forward and a convolution of SDXL, against torch's own products in the same run. Without AMX on either side:

    SEDAQ_MAX_ISA=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python benchmarks/kernels.py --name kernels_avx512
"""

from __future__ import annotations

import argparse
import sys

import torch
from results import keep

from sedaq.aq.formats import Format
from sedaq.kernels import bench, cost_model, dispatch

FORMATS = ("1x8g8", "1x8g8h", "3x8g16", "3x8g16h", "2x8g8", "2x8g8h", "4x8g8", "4x8g8h", "1x8g4", "1x6g3", "1x8g2", "1x4g2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(bench.TOKENS))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=["x".join(map(str, shape)) for shape in bench.SHAPES], help="OUTxIN or OUTxINxSIZE")
    parser.add_argument("--classes", nargs="+", default=list(dispatch.PRECISIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="kernels")
    arguments = parser.parse_args()
    formats = [(text, Format.parse(text)) for text in arguments.formats]
    cases = [(text, f.n_codebooks, f.n_entries, f.group_size, f.structure) for text, f in formats]
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for shape in [tuple(map(int, text.split("x"))) for text in arguments.shapes]:
            rows += bench.compare(
                cases,
                shapes=[shape],
                tokens=arguments.tokens,
                kernels=cost_model.candidates(),
                precisions=arguments.classes,
                repeats=arguments.repeats,
            )
            print(threads, shape, bench.choices(rows), flush=True)
            keep(arguments.name, "python benchmarks/kernels.py " + " ".join(sys.argv[1:]), rows, choices=bench.choices(rows))


if __name__ == "__main__":
    main()
