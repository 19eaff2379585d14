"""Kernels without instructions of a processor's own, as ARM gets them:  python benchmarks/portable.py      → results/portable.json

Against float32 products held to the same vectors of 16 bytes: torch, where its libraries heed being told so, and OpenBLAS's kernels for Nehalem
through numpy. Torch's time at full width stands beside, so that it is seen whether torch was held at all. One thread, medians of interleaved products.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

HELD = {
    "OPENBLAS_CORETYPE": "NEHALEM",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "SEDAQ_MAX_ISA": "portable",
}
SHAPES, TOKENS = ((1152, 1152), (4608, 1152), (1152, 4608)), (256, 1024)
FORMATS = ("1x8g8", "1x8g8h", "2x8g8", "2x8g8h", "4x8g8", "1x6g3", "1x4g2")
KERNELS = ("f32-portable", "lookup32-portable")


def rows(repeats: int, formats: tuple[str, ...]) -> list[dict[str, Any]]:
    import torch

    from sedaq.aq.formats import Format
    from sedaq.kernels import dispatch, native
    from sedaq.kernels.cost_model import random_matrix
    from sedaq.kernels.reference import dequantize
    from sedaq.kernels.timing import interleaved_medians

    torch.set_num_threads(1)
    found = []
    for n_out, n_in in SHAPES:
        for tokens in TOKENS:
            x = torch.randn(tokens, n_in)
            for text in formats:
                f = Format.parse(text)
                matrix = random_matrix(n_out, n_in, f.n_codebooks, f.n_entries, f.group_size, f.structure)
                dense = dequantize(matrix)
                narrow = (x.numpy(), dense.numpy().T)
                products: dict[str, Any] = {
                    "torch": partial(torch.nn.functional.linear, x, dense),
                    "openblas": partial(narrow[0].__matmul__, narrow[1]),
                    **{kernel: partial(native.product, kernel, x, matrix) for kernel in KERNELS},
                }
                case = {"layer": f"{n_in}->{n_out}", "tokens": tokens, "format": text, "chosen": dispatch.choose(x, tokens, matrix)}
                found.append({**case, "ms": interleaved_medians(products, repeats)})
                print(found[-1], file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=("held", "wide"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(rows(arguments.repeats, FORMATS if arguments.child == "held" else FORMATS[:1])))
        return
    from results import keep

    free = {name: value for name, value in os.environ.items() if name not in HELD}
    command = [sys.executable, __file__, "--repeats", str(arguments.repeats), "--child"]
    children = {
        kind: json.loads(subprocess.run([*command, kind], env=free | held, check=True, stdout=subprocess.PIPE, text=True).stdout)
        for kind, held in (("wide", {"SEDAQ_MAX_ISA": "portable"}), ("held", HELD))
    }
    wide = {(row["layer"], row["tokens"]): row["ms"]["torch"] for row in children["wide"]}
    kept = []
    for row in children["held"]:
        peer = row["ms"]["openblas"]
        kept.append(
            {**row, "torch_at_full_width_ms": wide[row["layer"], row["tokens"]], "ratio": {k: peer / row["ms"][k] for k in KERNELS}}
        )
    keep("portable", f"python benchmarks/portable.py --repeats {arguments.repeats}", kept, held=HELD)


if __name__ == "__main__":
    main()
