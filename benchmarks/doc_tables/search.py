"""Tables of searched plans."""

from __future__ import annotations

from .layout import Results, fixed, interval, lay_out, percent, table, with_interval


def methods(results: Results, model: str) -> str:
    """Searched plans beside other methods at equal bytes, best first within a budget."""
    rows = sorted(results.rows(f"search_{model}"), key=lambda row: (row["bits"], row["fid"], row["method"] != "searched"))
    return table(
        rows,
        {
            "bits": lambda row: f"{row['bits']:g}",
            "method": lambda row: row["method"].replace("learnt", "learned"),
            "exact bits": lambda row: fixed(row["bits_per_weight"], 3),
            "Fréchet distance": lambda row: fixed(row["fid"], 2),
            "above full precision, 95 %": lambda row: with_interval(row["excess"]["value"], row["excess"]["ci"], 2),
            "above the searched plan, 95 %": lambda row: "–" if row["method"] == "searched" else interval(row["over_searched"]["ci"], 2),
        },
    )


def remaining_excess(results: Results) -> str:
    """The share of uniform's excess that the searched plan keeps."""
    models, budgets = ("mnist-dit", "mnist-unet"), (1.5, 2, 2.5, 3, 4)

    def share(model: str, bits: float) -> str:
        searched, uniform = (
            results.row(f"search_{model}", bits=bits, method=method)["excess"]["value"] for method in ("searched", "uniform")
        )
        return percent(searched / uniform, 2)

    return lay_out(["", *(f"{bits:g} bits" for bits in budgets)], [[model, *(share(model, bits) for bits in budgets)] for model in models])


def step_times(results: Results) -> str:
    """Milliseconds a step: predicted before a plan is applied, and measured."""

    def cell(subject: str, n_images: int, bits: str) -> str:
        row = results.row("step_times", subject=subject, n_images=n_images, bits=bits)
        return f"{fixed(row['foretold_ms'], 1)} / {fixed(row['ms'], 1)}"

    cases = list(dict.fromkeys((row["subject"], row["n_images"]) for row in results.rows("step_times")))
    lines = [[subject, str(n), *(cell(subject, n, bits) for bits in ("16", "2", "4"))] for subject, n in cases]
    return lay_out(["", "images at once", "full precision, ms", "2 bits, ms", "4 bits, ms"], lines)


def underestimated_steps(results: Results) -> str:
    """By how much quantized models exceed their predicted milliseconds, from the smallest to the largest case."""
    excess = [row["ms"] / row["foretold_ms"] - 1 for row in results.rows("step_times") if row["bits"] != "16"]
    return f"{fixed(100 * min(excess), 0)} to {percent(max(excess))}"


def search_seconds(results: Results) -> str:
    """Seconds of one search thread: exact plans, a whole front, one more budget."""

    def line(model: str) -> list[str]:
        exact = [row["seconds"] for row in results.rows("search_scale", model=model, what="exact")]
        others = [results.row("search_scale", model=model, what=what)["seconds"] for what in ("front", *FURTHER)]
        return [model, f"{fixed(min(exact), 2)} to {fixed(max(exact), 2)}", *(fixed(seconds, 2) for seconds in others)]

    models = dict.fromkeys(row["model"] for row in results.rows("search_scale"))
    return lay_out(["", "exact plan, s", "front with Optuna, s", *(f"{what}, s" for what in FURTHER)], [line(model) for model in models])


FURTHER = ("one more budget, without Optuna", "one more budget, with Optuna")
TABLES = (methods, remaining_excess, step_times, underestimated_steps, search_seconds)
