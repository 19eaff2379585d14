"""The comparison with other quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .layout import Column, DocsError, Results, Row, count, fixed, lay_out, measured, percent, table
from .tuning import above, unless_full

MODELS = ("mnist-dit", "mnist-unet", "digits-sd", "digits-mmdit", "cifar-unet", "mnist-flux")

OURS = ("sedaq tuned", "sedaq searched", "sedaq uniform")
SIZES = (2, 3, 4, 4.5)  # bits, of the table of all methods


def step(row: Mapping[str, Any]) -> str:
    """Milliseconds of a step where a kernel of ours ran, with the share of the same model's in float."""
    if "step_ms" in row:
        return f"{fixed(row['step_ms'], 0)} ({fixed(row['step_ms'] / row['float_step_ms'], 2)} of float)"
    return "–" if row["rival"] == "sedaq" else "as float"


def rows_of(results: Results, model: str) -> list[Row]:
    """The smallest first, without those of a keep list that changed nothing: the tool leaves these layers alone anyway."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in sorted(results.rows(f"peers_{model}"), key=lambda row: (row["size_bytes"], len(row["name"]))):
        found.setdefault((row["name"].removesuffix(", ends kept"), row["size_bytes"], row["excess"]["value"]), row)
    return list(found.values())


def peers(results: Results, model: str) -> str:
    """Every method on a model, the smallest first."""
    rows = rows_of(results, model)
    return table(
        rows,
        {
            "method": lambda row: row["name"],
            "bytes": lambda row: count(row["size_bytes"]),
            "bits": lambda row: fixed(row["bits_per_weight"], 2),
            "Fréchet distance": lambda row: fixed(row["fid"], 2),
            "above full precision, 95 %": above,
            **({"agreement": lambda row: percent(row["agreement"], 1)} if any("agreement" in row for row in rows) else {}),
            "PSNR, dB": unless_full(lambda row: fixed(row["psnr"], 1)),
            "weight error": unless_full(lambda row: fixed(row["weight_error"], 4)),
            "at 16 bits": unless_full(lambda row: percent(row["share_at_16_bits"], 1)),
            "quantized in, s": lambda row: fixed(row["quantize_seconds"], 1) if "quantize_seconds" in row else "–",
            "a step, ms": step,
        },
    )


def peer_models(results: Results) -> str:
    """A section for each model that was measured: how, figure and table."""
    sections = []
    for model in MODELS:
        try:
            conditions = results.result(f"peers_{model}")["conditions"]
        except DocsError:
            continue
        how = f"{count(conditions['n_images'])} images at {conditions['steps']} steps from each of {len(conditions['seeds'])} noise seeds."
        figure = f"![Bits a weight against Fréchet distance above full precision, {model}](peers_{model}.png)"
        sections.append("\n\n".join([f"### {model}", measured(results, f"peers_{model}"), how, figure, peers(results, model)]))
    return "\n\n".join(sections) or "No model has been measured yet.\n"


def peers_within(results: Results, model: str) -> str:
    """Of each method the row nearest to full precision within the bytes of the uniform plans of SIZES bits."""
    rows = rows_of(results, model)
    limits = {bits: next(row["size_bytes"] for row in rows if row["name"] == f"sedaq uniform {bits:g}") for bits in SIZES}
    methods: dict[str, list[Row]] = {}
    for row in rows:
        if row["name"] != "full precision":
            methods.setdefault(f"sedaq {row['setting']}" if row["rival"] == "sedaq" else row["rival"], []).append(row)

    def nearest(method: str, limit: int) -> str:
        fitting = [row for row in methods[method] if row["size_bytes"] <= limit]
        return above(min(fitting, key=lambda row: row["excess"]["value"])) if fitting else "–"

    def column(limit: int) -> Column:
        return lambda method: nearest(method, limit)

    order = sorted(methods, key=lambda method: (method not in OURS, OURS.index(method) if method in OURS else 0))
    columns = {f"{bits:g} bits, {count(limit)} bytes": column(limit) for bits, limit in limits.items()}
    return table(order, {"Fréchet distance above full precision, 95 %": str, **columns})


def _compare_with_plans(rows: list[Row], setting: str) -> dict[str, int]:
    """How other methods stand beside sedaq's plans of a kind at the same bytes, where these reach; between two plans by straight lines.

    A Fréchet distance is higher or lower where its excess' 95 % interval and that of sedaq's plans do not meet. PSNR is compared as it is.
    """
    ours = sorted((row for row in rows if row["rival"] == "sedaq" and row["setting"] == setting), key=lambda row: row["size_bytes"])
    sizes, intervals = [row["size_bytes"] for row in ours], np.array([row["excess"]["ci"] for row in ours])
    psnrs = [row["psnr"] for row in ours]
    found = {"higher": 0, "not decided": 0, "lower": 0, "lower PSNR": 0, "higher PSNR": 0}
    for row in rows:
        if row["rival"] not in ("sedaq", "full precision") and ours and sizes[0] <= row["size_bytes"] <= sizes[-1]:
            least, most = (float(np.interp(row["size_bytes"], sizes, ends)) for ends in intervals.T)
            low, high = row["excess"]["ci"]
            found["higher" if low > most else "lower" if high < least else "not decided"] += 1
            found["higher PSNR" if row["psnr"] > np.interp(row["size_bytes"], sizes, psnrs) else "lower PSNR"] += 1
    return found


def peer_summary(results: Results) -> str:
    """Other methods' rows beside sedaq's line of the same bytes, each model."""
    rows = []
    for model in MODELS:
        try:
            measured_rows = rows_of(results, model)
        except DocsError:
            continue
        rows += [{"model": model, "plans": setting, **_compare_with_plans(measured_rows, setting)} for setting in ("searched", "tuned")]
    return table(
        rows,
        {
            "": lambda row: row["model"],
            "sedaq's plans": lambda row: row["plans"],
            "higher Fréchet distance": lambda row: count(row["higher"]),
            "not decided": lambda row: count(row["not decided"]),
            "lower": lambda row: count(row["lower"]),
            "lower PSNR": lambda row: count(row["lower PSNR"]),
            "higher PSNR": lambda row: count(row["higher PSNR"]),
        },
    )


def one_rate(results: Results) -> str:
    """Formats without a choice of bits for each layer, beside searched plans: sedaq's uniform plans and GPTQ, input and output layers kept."""
    names = ["sedaq uniform {}", "sedaq uniform {}, ends kept", "GPTQ {} bits, groups of 128, ends kept", "sedaq searched {}"]
    heads = ["", "bits", "uniform", "uniform, ends kept", "GPTQ, ends kept (bits)", "searched"]
    lines = []
    for model in MODELS:
        try:
            rows = {row["name"]: row for row in results.rows(f"peers_{model}")}
        except DocsError:
            continue
        for bits in ("2", "3", "4"):
            found = [rows.get(name.format(bits)) for name in names]
            cells = [fixed(row["excess"]["value"], 2) if row else "–" for row in found]
            if found[2]:
                cells[2] += f" ({fixed(found[2]['bits_per_weight'], 2)})"
            lines.append([model, bits, *cells])
    return lay_out(heads, lines)


def peer_versions(results: Results) -> str:
    """The packages that were measured, with their versions."""
    found: dict[str, str] = {}
    for model in MODELS:
        try:
            rows = results.rows(f"peers_{model}")
        except DocsError:
            continue
        for row in rows:
            found |= row["versions"]
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items())) or "none yet"


TABLES = (peer_models, peers_within, peer_summary, one_rate, peer_versions)
