"""Tables of the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .layout import Results, count, fixed, lay_out, table

# What torch itself offers in each class, and which classes are fine enough to serve it.
PEERS = {"exact": "torch_f32", "bf16": "torch_bf16", "a8": "torch_int8"}
FINER = {"exact": ("exact",), "bf16": ("exact", "bf16"), "a8": ("a8",)}


def _ratio(row: Mapping[str, Any], precision: str) -> float:
    """Torch's time over the kernel's; torch has no 8-bit convolution of floats, so float32 stands in."""
    ratio: float = row["ratio"][PEERS[precision]] or row["ratio"]["torch_f32"]
    return ratio


def kernel_ratios(results: Results, name: str) -> str:
    """Torch's time over that of the kernel which the dispatcher took, a line for a layer, tokens, threads and class."""
    rows = [row for row in results.rows(name) if row["chosen"] and row["precision"] in ("exact", "a8")]
    found = {(row["layer"], row["tokens"], row["threads"], row["precision"], row["format"]): row for row in rows}
    formats = list(dict.fromkeys(row["format"] for row in rows))

    def cell(*case: Any) -> str:
        row = found.get(case)
        return f"{fixed(_ratio(row, row['precision']), 2)} {row['kernel'].partition('-')[0]}" if row else "–"

    cases = list(dict.fromkeys(key[:4] for key in found))
    lines = [[case[0].replace("->", "→"), *map(str, case[1:]), *(cell(*case, text) for text in formats)] for case in cases]
    return lay_out(["layer", "tokens", "threads", "class", *formats], lines)


def fastest_kernels(results: Results, name: str, formats: list[str], threads: int = 1) -> str:
    """Torch's time over that of the fastest kernel of each class; the formats are parted by slashes, the kernels named."""
    rows = [row for row in results.rows(name, threads=threads) if row["kernel"] != "dequantize"]

    def cell(layer: str, tokens: int, precision: str) -> str:
        fine = [row for row in rows if (row["layer"], row["tokens"]) == (layer, tokens) and row["precision"] in FINER[precision]]
        best = [
            max((row for row in fine if row["format"] == text), key=lambda row: row["ratio"][PEERS[precision]] or 0) for text in formats
        ]
        if not all(row["ratio"][PEERS[precision]] for row in best):
            return "–"
        kernels = ", ".join(dict.fromkeys(row["kernel"].partition("-")[0] for row in best))
        return " / ".join(fixed(_ratio(row, precision), 2) for row in best) + f" {kernels}"

    cases = list(dict.fromkeys((row["layer"], row["tokens"]) for row in rows))
    lines = [[layer.replace("->", "→"), str(tokens), *(cell(layer, tokens, precision) for precision in PEERS)] for layer, tokens in cases]
    return lay_out(["layer", "tokens", *PEERS], lines)


def kernel_choices(results: Results, name: str) -> str:
    """How often the dispatcher took a kernel within a tenth of the fastest of its class (exact and a8)."""
    times: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in results.rows(name):
        if row["precision"] in ("exact", "a8"):
            times.setdefault(tuple(row[key] for key in ("layer", "tokens", "threads", "format", "precision")), []).append(row)
    ratios = [row["ms"] / min(other["ms"] for other in rows) for rows in times.values() for row in rows if row["chosen"]]
    near = sum(ratio <= 1.1 for ratio in ratios)
    return f"{near} of {len(ratios)} choices are within 1.1 of the fastest, the worst at {fixed(max(ratios), 2)}"


def beside_torch(results: Results, name: str, precision: str, min_tokens: int) -> str:
    """In how many cases the fastest kernel of a class is at torch's speed or above, and the range of the ratios."""
    best: dict[tuple[Any, ...], float] = {}
    for row in results.rows(name, precision=precision):
        if row["tokens"] >= min_tokens and row["ratio"][PEERS[precision]]:
            case = tuple(row[key] for key in ("layer", "tokens", "threads", "format"))
            best[case] = max(best.get(case, 0.0), row["ratio"][PEERS[precision]])
    wins = sum(ratio >= 1 for ratio in best.values())
    return f"{wins} of {len(best)} cases (ratios from {fixed(min(best.values()), 2)} to {fixed(max(best.values()), 2)})"


def kernel_roofs(results: Results, name: str) -> str:
    """Multiply-adds a second of the chosen kernels, and their share of what torch or memory allows."""
    return table(
        [row for row in results.rows(name) if "gmacs" in row],
        {
            "class": lambda row: row["precision"],
            "tokens": lambda row: str(row["tokens"]),
            "kernel": lambda row: row["kernel"],
            "10⁹ multiply-adds a second": lambda row: fixed(row["gmacs"], 1),
            "share of the roof": lambda row: fixed(row["share_of_roof"], 2),
        },
    )


def transformer_block(results: Results, *names: str) -> str:
    """Milliseconds of one DiT-XL/2 block's linear layers, and ratios to torch."""
    rows = [row for name in names for row in results.rows(name)]
    ways, classes = list(rows[0]["ms_a_block"]), list(rows[0]["ratio"])
    lines = [
        [
            row["format"],
            str(row["threads"]),
            *(fixed(row["ms_a_block"][way], 1) for way in ways),
            *(fixed(row["ratio"][precision], 2) for precision in classes),
        ]
        for row in rows
    ]
    return lay_out(
        ["format", "threads", *(f"{way.replace('torch_', 'torch ')}, ms" for way in ways), *(f"ratio, {p}" for p in classes)], lines
    )


def whole_model(results: Results, name: str) -> str:
    """A sampling step of DiT-XL/2's architecture: seconds, memory, bytes of weights read."""
    titles = {"full": "full precision", "coded": "2x8g8", "hierarchical": "2x8g8h"}
    rows = results.rows(name)
    full = {row["n_images"]: row["seconds_per_step"] for row in rows if (row["subject"], row["arithmetic"]) == ("full", "float32")}
    return table(
        rows,
        {
            "weights": lambda row: titles[row["subject"]],
            "arithmetic": lambda row: row["arithmetic"],
            "images": lambda row: str(row["n_images"]),
            "s a step": lambda row: fixed(row["seconds_per_step"], 2),
            "torch float32 over it": lambda row: fixed(full[row["n_images"]] / row["seconds_per_step"], 2),
            "peak memory, GB": lambda row: fixed(row["peak_bytes"] / 1e9, 2),
            "MB of weights read": lambda row: count(row["operations"]["bytes_read"] / 1e6),
        },
    )


def portable_kernels(results: Results) -> str:
    """Kernels without special instructions, and OpenBLAS's time over theirs."""
    kernels = list(results.rows("portable")[0]["ratio"])
    return table(
        results.rows("portable"),
        {
            "layer": lambda row: row["layer"].replace("->", "→"),
            "tokens": lambda row: str(row["tokens"]),
            "format": lambda row: row["format"],
            "torch at full width, ms": lambda row: fixed(row["torch_at_full_width_ms"], 1),
            "torch held, ms": lambda row: fixed(row["ms"]["torch"], 1),
            "OpenBLAS held, ms": lambda row: fixed(row["ms"]["openblas"], 1),
            **{kernel: lambda row, kernel=kernel: fixed(row["ratio"][kernel], 2) for kernel in kernels},
            "chosen": lambda row: row["chosen"],
        },
    )


def byte_tables(results: Results) -> str:
    """Relative error of products, median / largest over layers, by the rule that sets the unit of a byte table."""
    rows = [row for row in results.rows("byte_tables") if row["format"] != "activations"]
    rules, formats = (list(dict.fromkeys(row[key] for row in rows)) for key in ("rule", "format"))

    def cell(text: str, rule: str) -> str:
        row = results.row("byte_tables", format=text, rule=rule)
        return f"{fixed(row['median'], 4)} / {fixed(row['greatest'], 3)}"

    return lay_out(
        ["format", *(rule.replace("greatest", "largest") for rule in rules)],
        [[text, *(cell(text, rule) for rule in rules)] for text in formats],
    )


TABLES = (
    kernel_ratios,
    fastest_kernels,
    kernel_choices,
    beside_torch,
    kernel_roofs,
    transformer_block,
    whole_model,
    portable_kernels,
    byte_tables,
)
