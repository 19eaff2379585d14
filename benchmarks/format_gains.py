"""By how much kinds of format beat scalars at equal code bits:  python benchmarks/format_gains.py

Encodes a fixed layer at about 2 code bits in every kind of format; gain = −log4(error) − code bits, in bits per weight: a kind with .1 more
reaches the error of another with .1 bits less. Only differences between kinds mean something. The menu's rule (aq/plans/menu.py) reads its table
off this, with scalars as zero.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from results import keep

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format
from sedaq.aq.profiling.bench import fixed_layer

KINDS = [(1, b) for b in range(3, 11)] + [(2, b) for b in range(4, 9)] + [(m, b) for m in (3, 4) for b in range(4, 9)]
SLOPE = 0.18  # bits of gain that a bit more of code costs on these layers; brings all to 2 code bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=768)
    size = parser.parse_args().size
    weight, hessian = fixed_layer(size, size)
    rows: list[dict[str, Any]] = []
    for m, b in KINDS:
        for structure in ("", "m", "h"):
            if structure == "h" and (b % 2 or b < 6):
                continue
            g = max(2, round(m * b / 2))
            format = Format.parse(f"{m}x{b}g{g}{structure}")
            error = encode(weight, format, hessian).error
            bits = m * b / g
            rows.append({"format": str(format), "code_bits": bits, "error": error, "gain": -math.log(error, 4) - bits + SLOPE * (bits - 2)})
            print(rows[-1], flush=True)
    keep("format_gains", f"python benchmarks/format_gains.py --size {size}", rows)


if __name__ == "__main__":
    main()
