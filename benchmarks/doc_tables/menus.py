"""Tables of formats and menus."""

from __future__ import annotations

import statistics
from typing import Any

from .layout import Results, count, fixed, lay_out, percent, table, times


def equal_bytes(results: Results) -> str:
    """The best format of the menu at AQLM's total bytes."""

    def aqlm_bits(row) -> str:
        return fixed(row["bits_allowed"], 2)

    return table(
        results.rows("encode_bytes"),
        {
            "layer": lambda row: times(row["shape"]),
            "AQLM: format, bits": lambda row: f"{row['against']}, {aqlm_bits(row)}",
            "AQLM: error": lambda row: fixed(row["aqlm_error"], 4),
            "sedaq: format, bits": lambda row: f"{row['format']}, {fixed(row['bits_per_weight'], 2)}",
            "sedaq: error": lambda row: fixed(row["rel_err_out"], 4),
            "less by": lambda row: percent(1 - row["rel_err_out"] / row["aqlm_error"]),
        },
    )


def architectures(results: Results) -> str:
    """Layers, weights and bytes at each rate of published architectures."""

    def gigabytes(rate: str) -> Any:
        return lambda row: fixed(row["size_bytes"][rate] / 1e9, 3) if row["size_bytes"][rate] else "–"

    return table(
        results.rows("architectures"),
        {
            "": lambda row: row["model"],
            "layers": lambda row: count(row["n_layers"]),
            "weights": lambda row: f"{row['n_weights'] / 1e6:,.1f} M",
            **{f"{rate} bits, GB": gigabytes(rate) for rate in ("1.5", "2", "3", "4")},
        },
    )


def digits(results: Results) -> str:
    """How often images are what their captions say."""
    return table(
        results.rows("digits"),
        {
            "pipeline": lambda row: row["model"],
            "guidance": lambda row: fixed(row["guidance"], 0),
            "digit": lambda row: percent(row["digit"], 1),
            "stroke": lambda row: percent(row["stroke"], 1),
            "slant": lambda row: percent(row["slant"], 1),
            "Fréchet distance": lambda row: f"{fixed(row['fid'], 1)} ± {fixed(row['fid_se'], 1)}",
        },
    )


def menu_seconds(results: Results) -> str:
    return table(
        results.rows("encode_menus"),
        {
            "": lambda row: row["subject"],
            "calibration, s": lambda row: fixed(row["seconds"]["calibration"], 1),
            "menus, s": lambda row: fixed(row["seconds"]["menus"], 1),
            "encoding, s": lambda row: fixed(row["seconds"]["encoding"], 1),
            "weights encoded": lambda row: f"{fixed(row['weights_encoded'] / 1e6, 1)} M",
            "s a million weights": lambda row: fixed(row["seconds_a_million"], 2),
            "entries": lambda row: count(row["entries"]),
            "with shared codebooks": lambda row: count(row["entries_with_shared_codebooks"]),
        },
    )


def menu_errors(results: Results) -> str:
    rates = list(results.rows("encode_menus")[0]["mean_error_by_rate"])
    lines = [[row["subject"], *(f"{row['mean_error_by_rate'][rate]:.3g}" for rate in rates)] for row in results.rows("encode_menus")]
    return lay_out(["", *(f"{float(rate):g} bits" for rate in rates)], lines)


def fast_menus(results: Results) -> str:
    def mean_ms(row, kind: str) -> str:
        return fixed(statistics.mean(times[kind] for times in row["ms_per_step"].values()), 2)

    return table(
        results.rows("fast_menus"),
        {
            "": lambda row: row["subject"],
            "entries": lambda row: count(row["entries"]),
            "that differ": lambda row: count(row["entries_that_differ"]),
            "mean ratio of errors": lambda row: fixed(row["mean_ratio_of_errors"], 4),
            "ms a step, least error": lambda row: mean_ms(row, "least error"),
            "ms a step, fastest within 2 %": lambda row: mean_ms(row, "as good"),
        },
    )


def menu_candidates(results: Results) -> str:
    """What it costs to try fewer formats for a layer and rate."""
    return table(
        results.rows("menu_candidates"),
        {
            "": lambda row: row["model"],
            "formats tried for a rate": lambda row: count(row["limit"]),
            "drafts": lambda row: count(row["drafts"]),
            "mean rise of the error": lambda row: percent(row["mean_rise"], 2),
            "largest rise": lambda row: percent(row["max_rise"], 1),
        },
    )


def format_gains(results: Results) -> str:
    """Gain over scalars by structure: free, mirrored, hierarchical codebooks."""
    rows = {row["format"]: row for row in results.rows("format_gains")}
    plain = [name for name in rows if name[-1].isdigit()]

    def cell(name: str) -> str:
        return f"{fixed(rows[name]['error'], 4)} ({percent(rows[name]['gain'])})" if name in rows else "–"

    lines = [[name, fixed(rows[name]["code_bits"], 2), *(cell(name + suffix) for suffix in ("", "m", "h"))] for name in plain]
    return lay_out(["format", "code bits", "free", "mirrored", "hierarchical"], lines)


def groupings(results: Results) -> str:
    """Tap groups beside channel groups on mnist-unet's 3×3 convolutions of 48 rows and more."""
    formats = ("2x6g9t", "2x6g9c", "3x6g9t", "3x6g9c")
    rows = [row for row in results.rows("encoder_ablation.groupings") if row["shape"][0] >= 48 and row["shape"][2:] == [3, 3]]
    errors = {(row["layer"], row["format"]): row["error"] for row in rows}
    shapes = {row["layer"]: times(row["shape"][:2]) for row in rows}
    lines = [[f"{layer} {shape}", *(fixed(errors[layer, text], 4) for text in formats)] for layer, shape in shapes.items()]
    return lay_out(["layer", *formats], lines)


TABLES = (architectures, digits, equal_bytes, menu_seconds, menu_errors, fast_menus, menu_candidates, format_gains, groupings)
