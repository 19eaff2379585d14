"""Tables of the demo and of the shipped models."""

from __future__ import annotations

from .layout import Column, Results, count, fixed, interval, percent, table


def demo_evaluations(results: Results) -> str:
    def value(name: str, digits: int) -> Column:
        return lambda row: f"{fixed(row['metrics'][name]['value'], digits)} ± {fixed(row['metrics'][name]['se'], digits)}"

    return table(
        results.rows("demo.evaluations"),
        {
            "": lambda row: row["name"],
            "bytes": lambda row: count(row["size_bytes"]),
            "bits": lambda row: fixed(row["bits_per_weight"], 2),
            "Fréchet distance": value("fid", 1),
            "KID": value("kid", 1),
            "agreement": lambda row: percent(row["metrics"]["agreement"]["value"], 1),
            "PSNR, dB": lambda row: "–" if row["name"] == "full precision" else value("psnr", 1)(row),
        },
    )


def demo_front(results: Results) -> str:
    return table(
        results.rows("demo.front"),
        {
            "bits": lambda row: fixed(row["bits_per_weight"], 2),
            "predicted, searched": lambda row: f"{fixed(row['predicted']['value'], 1)} ± {fixed(row['predicted']['std'], 1)}",
            "predicted, uniform": lambda row: fixed(row["uniform_predicted"]["value"], 1),
            "measured, searched": lambda row: fixed(row["measured"]["metrics"]["fid"]["value"], 1),
            "measured, uniform": lambda row: fixed(row["uniform_measured"]["metrics"]["fid"]["value"], 1),
            "difference, 95 %": lambda row: interval(row["difference_ci"], 1),
            "solver": lambda row: row["solver"],
        },
    )


def demo_predictors(results: Results) -> str:
    fit = results.result("demo")["rows"]["fit"]
    return table(
        [("sedaq", fit["spearman"]), *fit["baselines"].items()],
        {"predictor": lambda row: row[0], "Spearman, out of fold": lambda row: fixed(row[1], 3)},
    )


def shipped_models(results: Results) -> str:
    images = results.row("shipped_models", name="5,000 random training images")
    models = [results.row("shipped_models", name=name) for name in ("mnist-unet", "mnist-dit")]
    return table(
        [images, *models],
        {
            "": lambda row: row["name"],
            "agreement with the class asked for": lambda row: percent(row["agreement"], 1) if "agreement" in row else "–",
            "Fréchet distance": lambda row: f"{fixed(row['fid'], 2)} ± {fixed(row['fid_se'] if 'fid_se' in row else row['std'], 2)}",
            "over that of training images": lambda row: fixed(row.get("fid_over_training", 1), 1),
            "seconds a probe": lambda row: fixed(row["probe_seconds"], 1) if "probe_seconds" in row else "–",
        },
    )


def probe_seconds(results: Results) -> str:
    return table(
        results.rows("probe_seconds"),
        {
            "denoiser": lambda row: row["model"],
            "weights": lambda row: f"{fixed(row['parameters'] / 1e6, 2)} M",
            "seconds a probe": lambda row: fixed(row["seconds"], 2),
        },
    )


TABLES = (demo_evaluations, demo_front, demo_predictors, shipped_models, probe_seconds)
