"""The tables of ../docs/kernels.md from results/:  python benchmarks/kernels_tables.py kernels NAME | block NAME | portable

kernels  results of kernels.py: torch's time over that of the kernel which the dispatcher took, a line for a layer, tokens and threads
block    results of dit_block.py: milliseconds a block, and ratios
portable results of portable.py: ratios to OpenBLAS at equal width
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from results import RESULTS

PEERS = {"exact": "torch_f32", "a8": "torch_int8"}


def line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(cells: Sequence[Any]) -> list[str]:
    return [line(cells), "|---" * len(cells) + "|"]


def kernels(content: dict[str, Any]) -> list[str]:
    rows = [row for row in content["rows"] if row["chosen"] and row["precision"] in PEERS]
    formats = list(dict.fromkeys(row["format"] for row in rows))
    lines = head(["layer", "tokens", "threads", "class", *formats])
    for layer, tokens, threads, precision in dict.fromkeys((r["layer"], r["tokens"], r["threads"], r["precision"]) for r in rows):
        cells = {}
        for row in rows:
            if (row["layer"], row["tokens"], row["threads"], row["precision"]) == (layer, tokens, threads, precision):
                ratio = row["ratio"][PEERS[precision]] or row["ratio"]["torch_f32"]  # torch has no 8-bit convolution of floats
                cells[row["format"]] = f"{ratio:.2f} {row['kernel'].partition('-')[0]}"
        lines.append(line([layer, tokens, threads, precision, *(cells.get(text, "–") for text in formats)]))
    choices = content["choices"]
    return [*lines, "", f"{choices['cases']} choices, {choices['within_1.1']:.1%} within 1.1 of the fastest, worst {choices['worst']:.2f}"]


def block(content: dict[str, Any]) -> list[str]:
    names = list(content["rows"][0]["ms_a_block"])
    classes = list(content["rows"][0]["ratio"])
    lines = head(["format", "tokens", "threads", *(f"{name}, ms" for name in names), *(f"ratio, {name}" for name in classes)])
    for row in content["rows"]:
        numbers = [f"{row['ms_a_block'][name]:.1f}" for name in names] + [f"{row['ratio'][name]:.2f}" for name in classes]
        lines.append(line([row["format"], row["tokens"], row["threads"], *numbers]))
    return lines


def portable(content: dict[str, Any]) -> list[str]:
    kernels = list(content["rows"][0]["ratio"])
    lines = head(["layer", "tokens", "format", "torch at full width, ms", "torch held, ms", "OpenBLAS held, ms", *kernels, "chosen"])
    for row in content["rows"]:
        ms = [row["torch_at_full_width_ms"], row["ms"]["torch"], row["ms"]["openblas"]]
        ratios = [f"{row['ratio'][kernel]:.2f}" for kernel in kernels]
        lines.append(line([row["layer"], row["tokens"], row["format"], *(f"{value:.1f}" for value in ms), *ratios, row["chosen"]]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"kernels": kernels, "block": block, "portable": portable}
    parser.add_argument("table", choices=list(tables))
    parser.add_argument("name", nargs="?", default="portable")
    arguments = parser.parse_args()
    content = json.loads((RESULTS / f"{arguments.name}.json").read_text())
    print("\n".join(tables[arguments.table](content)))


if __name__ == "__main__":
    main()
