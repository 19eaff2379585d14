"""Kernels under the roof:  python benchmarks/kernels_figure.py [NAME] [--format 2x8g8h]      → ../docs/NAME.png, results/NAME_roof.json

Multiply-adds a second of the kernels that the dispatcher took (results/NAME.json: 1152 → 4608, one thread) over tokens. The roof of a class is what
torch reaches on a square product of the same arithmetic, as large as it likes, or what memory brings of the stored weights, whichever is less.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from results import RESULTS, keep

from sedaq.kernels.bench import torch_int8
from sedaq.kernels.timing import interleaved_medians
from sedaq.reports import style

LAYER, THREADS, SIZE = "1152->4608", 1, 2048
N_OUT, N_IN, WEIGHT_BYTES = 4608, 1152, 4608 * 1152 // 4  # of 2 bits
CLASSES = {"exact": "float32", "bf16": "bfloat16", "a8": "8 bits"}


def seconds(function: Callable[[], Any], repeats: int = 7) -> float:
    return interleaved_medians({"": function}, repeats)[""] / 1e3


@torch.inference_mode()
def roofs(classes: Collection[str]) -> dict[str, float]:
    """Multiply-adds a second of torch's own products, and bytes a second read from memory."""
    torch.set_num_threads(THREADS)
    x = torch.randn(SIZE, SIZE)
    narrow, int8 = x.bfloat16(), torch_int8(x)
    large = torch.ones(1 << 28)
    products: dict[str, Callable[[], Any]] = {"exact": lambda: x @ x, "bf16": lambda: narrow @ narrow, "a8": lambda: int8(x)}
    found = {precision: SIZE**3 / seconds(product) for precision, product in products.items() if precision in classes}
    return {**found, "memory": large.nbytes / seconds(large.sum, 3)}


@style.styled
def draw(kept: list[dict[str, Any]], text: str) -> Figure:
    figure = style.new_figure(3.8)
    axes = figure.subplots()
    for place, (precision, label) in enumerate(CLASSES.items()):
        mine = [row for row in kept if row["precision"] == precision]
        if not mine:
            continue
        tokens = [row["tokens"] for row in mine]
        kernels = ", ".join(dict.fromkeys(row["kernel"] for row in mine))
        axes.plot(tokens, [row["gmacs"] for row in mine], "o-", color=f"C{place}", label=f"{precision}: {kernels}")
        roof = [row["gmacs"] / row["share_of_roof"] for row in mine]
        axes.plot(tokens, roof, "--", color=f"C{place}", linewidth=1, label=f"roof: torch's {label}, or memory")
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="10⁹ multiply-adds a second")
    axes.set_title(f"{LAYER.replace('->', ' → ')} at {text}, one thread")
    ticks = sorted({row["tokens"] for row in kept})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    style.plain_log(axes.yaxis)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="kernels")
    parser.add_argument("--format", default="2x8g8", help="of 2 bits")
    arguments = parser.parse_args()
    stored = json.loads((RESULTS / f"{arguments.name}.json").read_text())["rows"]
    wanted = (LAYER, arguments.format, THREADS, True)
    of_layer = [row for row in stored if (row["layer"], row["format"], row["threads"], row["chosen"]) == wanted]
    found = roofs({row["precision"] for row in of_layer})
    kept = []
    for row in sorted(of_layer, key=lambda row: row["tokens"]):
        work = row["tokens"] * N_OUT * N_IN
        rate, roof = 1e3 * work / row["ms"], min(found[row["precision"]], work * found["memory"] / WEIGHT_BYTES)
        counted = {"gmacs": rate / 1e9, "share_of_roof": rate / roof}
        kept.append({"precision": row["precision"], "tokens": row["tokens"], "kernel": row["kernel"], **counted})
    style.save_png(draw(kept, arguments.format), Path(__file__).parent.parent / "docs" / f"{arguments.name}.png")
    command = f"python benchmarks/kernels_figure.py {arguments.name} --format {arguments.format}"
    keep(f"{arguments.name}_roof", command, [*kept, {"roofs": found}])
    for row in kept:
        print(row)


if __name__ == "__main__":
    main()
