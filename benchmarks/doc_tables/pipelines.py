"""Tables of pipelines: the user guide's output, the whole job on the shipped ones, and models larger than memory."""

from __future__ import annotations

from typing import Any

from .layout import Results, fixed, table


def printed(results: Results, number: int, lines: int = 0) -> str:
    """What step `number` of the guide printed, and its seconds; the first lines of it alone where `lines` says so."""
    row = results.rows("guide")[number - 1]
    text = [line.rstrip() for line in row["printed"].splitlines()]
    if lines and len(text) > lines:
        text = [*text[:lines], "…"]
    seconds = row["seconds"]
    took = f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    return "\n".join([f"*{took}*", "", *(f"    {line}".rstrip() for line in text or ["(nothing)"])])


def whole_job(results: Results) -> str:
    """Each shipped pipeline at both budgets."""

    def metric(name: str, digits: int) -> object:
        def text(row: dict) -> str:  # type: ignore[type-arg]
            value = row["metrics"].get(name)
            return "–" if value is None else f"{fixed(value['value'], digits)} ± {fixed(value['se'], digits)}"

        return text

    return table(
        results.rows("pipelines"),
        {
            "pipeline": lambda row: row["model"],
            "": lambda row: row["plan"],
            "bytes": lambda row: f"{row['size_bytes']:,}",
            "Fréchet distance": metric("fid", 2),  # type: ignore[dict-item]
            "PSNR, dB": metric("psnr", 1),  # type: ignore[dict-item]
            "digit": lambda row: f"{fixed(100 * row['digit'], 1)} %",
            "stroke": lambda row: f"{fixed(100 * row['stroke'], 1)} %",
            "slant": lambda row: f"{fixed(100 * row['slant'], 1)} %",
        },
    )


def larger_than_memory(results: Results) -> str:
    names = {"dit": "DiT of width 1,152", "flux": "FLUX.1-dev's sizes"}

    def blocks(row: Any) -> str:
        kinds = {"dit": "{0} blocks", "flux": "{0} blocks of two streams and {1} of one"}
        return f", {kinds[row['model']].format(row['blocks'], 2 * row['blocks'])}" if row["blocks"] else ""

    return table(
        results.rows("large_models"),
        {
            "model": lambda row: names[row["model"]] + blocks(row),
            "weights": lambda row: f"{row['n_weights'] / 1e6:,.0f} M",
            "largest shard, GB": lambda row: fixed(max(row["shard_bytes"]) / 1e9, 2),
            "plan, s": lambda row: fixed(row["search"]["seconds"], 0),
            "apply, min": lambda row: fixed(row["apply"]["seconds"] / 60, 1),
            "peak memory, GB": lambda row: fixed(row["apply"]["peak_bytes"] / 1e9, 2),
            "of it no file's, GB": lambda row: fixed(row["apply"]["own_bytes"] / 1e9, 2),
            "written, GB": lambda row: fixed(row["size_bytes"] / 1e9, 3),
        },
    )


def processors(results: Results) -> str:
    """Menus and codes made as other processors would."""
    return table(
        results.rows("processors"),
        {
            "made": lambda row: row["case"],
            "equal formats": lambda row: f"{fixed(100 * row['equal_formats'], 0)} %",
            "equal encodings": lambda row: f"{fixed(100 * row['equal_encodings'], 0)} %",
            "mean error": lambda row: fixed(row["error"], 5),
            "Fréchet distance": lambda row: fixed(row["fid"], 1),
            "of three noise seeds": lambda row: ", ".join(fixed(value, 1) for value in row["fid_of_seeds"]),
        },
    )


TABLES = (printed, whole_job, larger_than_memory, processors)
