"""Tables of what a prior that other models taught is worth on the next one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from .layout import Results, count, fixed, lay_out, measured, percent, table, with_interval

# Result files, and the command that makes each.
COMMANDS = {
    "corpus": "corpus.py NAME --data DIR",
    "transfer_corpus": "transfer.py corpus",
    "transfer_leave_one_out": "transfer.py leave-one-out",
    "transfer_exponent": "transfer.py exponent",
    "transfer_findings": "transfer.py findings",
    "transfer_time": "transfer.py time",
    "transfer_test": "transfer.py test",
}
Drawn = Callable[[Results, str], str]


def once_measured(draw: Drawn) -> Drawn:
    """Until there are results, a table says by which command they come."""

    @functools.wraps(draw)
    def drawn(results: Results, name: str) -> str:
        if not (results.folder / f"{name}.json").exists():
            return f"*Not measured yet.*\n\n    python benchmarks/{COMMANDS[name]}"
        return draw(results, name)

    return drawn


def _estimate(found: Mapping[str, Any] | None, digits: int = 2) -> str:
    return "–" if found is None else with_interval(found["value"], found["ci"], digits)


@once_measured
def transfer_measured(results: Results, name: str) -> str:
    return measured(results, name)


@once_measured
def corpus_models(results: Results, name: str) -> str:
    """The models, how good they are, and how much of what was measured of each is above the noise."""
    return table(
        results.rows(name),
        {
            "": lambda row: row["model"] + (" (test)" if row["is_test"] else ""),
            "what it adds": lambda row: row["why"],
            "layers": lambda row: count(row["layers"]),
            "weights": lambda row: f"{fixed(row['n_weights'] / 1e6, 2)} M",
            "Fréchet distance": lambda row: fixed(row["fid"]["value"], 2),
            "agreement": lambda row: percent(row["agreement"]["value"]) if "agreement" in row else "–",
            "probes above noise": lambda row: percent(row["probe"]["above_noise"]),
            "layers alone": lambda row: percent(row["truth"]["above_noise"]),
            "these by feature distance": lambda row: percent(row["truth"]["distances_above_noise"]),
        },
    )


@once_measured
def transfer_corpus(results: Results, name: str) -> str:
    """What is shipped, a line each."""
    (row,) = results.rows(name)
    lines = [
        ["models", f"{len(row['models'])}: {', '.join(row['models'])}"],
        ["layers, rows", f"{count(row['n_layers'])}, {count(row['n_rows'])}"],
        ["corpus", f"{fixed(row['corpus_bytes'] / 1e6, 2)} MB"],
        ["prior", f"{fixed(row['prior_bytes'] / 1e6, 2)} MB"],
        ["fit", f"{fixed(row['fit_seconds'], 1)} s"],
        ["trees", f"{row['settings']['n_trees']} of depth {row['settings']['max_depth']}, chosen by {row['n_trials']} trials"],
        ["spread of models' levels, in logarithms", fixed(row["level"], 2)],
        ["spread of a model's layers, in logarithms", fixed(row["residual"] * row["scale"], 2)],
    ]
    return lay_out(["", ""], lines)


@once_measured
def transfer_figures(results: Results, name: str) -> str:
    """What was learnt, drawn when the corpus was made."""
    return (
        "![Properties ranked by how much they tell layers apart over all models, coloured by direction](../prior.summary.png)\n\n"
        "![A panel for each of nine properties: the factor on a layer's harm against its value](../prior.dependence.png)"
    )


@once_measured
def transfer_predictors(results: Results, name: str) -> str:
    """Every predictor by its number of probes, means over models with 90 % intervals."""
    return table(
        sorted(results.rows(f"{name}.predictors"), key=lambda row: row["n_probes"]),
        {
            "probes": lambda row: count(row["n_probes"]),
            "predictor": lambda row: row["predictor"],
            "Spearman, of its ceiling": lambda row: _estimate(row["share"], 3),
            "median log error": lambda row: _estimate(row["log_ratio"]),
            "in 90 % intervals": lambda row: "–" if row["covered"] is None else percent(row["covered"]["value"]),
        },
    )


@once_measured
def transfer_differences(results: Results, name: str) -> str:
    """One predictor against another on the same models and plans, with 90 % intervals."""
    return table(
        results.rows(f"{name}.differences"),
        {
            "": lambda row: f"{row['predictor']}, {row['n_probes']} probes",
            "against": lambda row: f"{row['against']}, {row['against_probes']} probes",
            "Spearman, of its ceiling": lambda row: _estimate(row["share"], 3),
            "median log error": lambda row: _estimate(row["log_ratio"]),
        },
    )


@once_measured
def transfer_models(results: Results, name: str) -> str:
    """Spearman as a share of its ceiling, model by model."""
    rows = results.rows(f"{name}.models")
    keys = sorted(dict.fromkeys((row["n_probes"], row["predictor"]) for row in rows), key=lambda key: key[0])
    found = {(row["model"], row["n_probes"], row["predictor"]): row["share"] for row in rows}

    def cell(value: float | None) -> str:
        return "–" if value is None else fixed(value, 3)

    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = next(row for row in rows if row["model"] == model)
        lines.append([model, fixed(own["ceiling"], 3), *(cell(found[(model, *key)]) for key in keys)])
    return lay_out(["", "noise ceiling", *(f"{predictor}, {n}" for n, predictor in keys)], lines)


@once_measured
def transfer_findings(results: Results, name: str) -> str:
    return table(
        results.rows(name),
        {
            "claim": lambda row: row["claim"],
            "here": lambda row: row["verdict"] + (f": {row['why']}" if row["why"] else ""),
            "ratio at equal error": lambda row: _estimate(row["ratio"]),
            "at any error": lambda row: _estimate(row["ratio_at_any_error"]),
            "models": lambda row: count(row["n_models"]),
            "layers": lambda row: count(row["n_layers"]),
        },
    )


@once_measured
def transfer_seconds(results: Results, name: str) -> str:
    (row,) = results.rows(name)
    return lay_out(["layers", "entries each", "seconds"], [[count(row["n_layers"]), count(row["n_entries"]), fixed(row["seconds"], 3)]])


@once_measured
def transfer_plans(results: Results, name: str) -> str:
    """Plans of 2 bits on fresh noise, with 95 % intervals."""
    return table(
        results.rows(f"{name}.plans"),
        {
            "": lambda row: row["model"],
            "plan by": lambda row: row["plan"] + ("" if row["plan"] == "uniform" else f", {row['n_probes']} probes"),
            "exact bits": lambda row: fixed(row["bits_per_weight"], 3),
            "above full precision": lambda row: _estimate(row["excess"]),
            "above the plan from most probes": lambda row: _estimate(row["over_probed"]),
        },
    )


TABLES = (
    corpus_models,
    transfer_measured,
    transfer_corpus,
    transfer_figures,
    transfer_predictors,
    transfer_differences,
    transfer_models,
    transfer_findings,
    transfer_seconds,
    transfer_plans,
)
