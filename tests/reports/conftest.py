"""A run folder as the other parts would leave it, with made-up numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sedaq.models.layers import block_of, role_of
from sedaq.sensitivity.prior.properties import PROPERTIES
from sedaq.storage import append_record, write_json

FINGERPRINT = "0123456789abcdef"
MENU = (
    (1.5, "1x5g4"),
    (2.0, "1x6g3hq"),
    (2.5, "1x7g3q@attention-query"),
    (3.0, "1x8g3hq"),
    (3.5, "2x8g5@attention-query"),
    (4.0, "1x8g2m"),
    (8.0, "int8"),
    (16.0, "asis"),
)
PARTS = ("norm1.linear", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
EVALUATIONS = (
    ("full precision", 3_519_512, 16.0, 2.613, 0.021, 0.9841, None),
    ("uniform", 560_312, 1.99, 9.384, 0.091, 0.9312, 17.21),
    ("searched", 560_104, 1.99, 5.127, 0.054, 0.9607, 19.48),
    ("searched + tuned", 560_104, 1.99, 3.482, 0.033, 0.9769, 21.96),
)


def layer_names(n_blocks: int) -> list[str]:
    inner = [f"transformer_blocks.{block}.{part}" for block in range(n_blocks) for part in PARTS]
    return ["pos_embed.proj", *inner, "proj_out_1", "proj_out_2"]


def plan_content(names: list[str], *, bits: float = 1.99, size: int = 560_104) -> dict[str, Any]:
    random = np.random.default_rng(1)
    layers = {
        name: {"format": MENU[int(choice)][1], "activation_bits": 16}
        for name, choice in zip(names, random.choice(8, len(names), p=(0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05)), strict=True)
    }
    return {
        "subject": {"name": "toy-dit", "fingerprint": FINGERPRINT},
        "budget": {"bits_per_weight": 2.0},
        "layers": layers,
        "encoding": {"effort": "fast", "seed": 7},
        "size_bytes": size,
        "bits_per_weight": bits,
        "predicted": None,
        "measured": None,
        "provenance": {
            "solver": "exact+swaps",
            "gap": 2e-5,
            "trials": 200,
            "gains": {"optuna": 0.0, "swaps": 0.025},
            "undecided": [{"layers": [names[1]], "takes": layers[names[1]]["format"], "or": "1x3g2", "margin": 0.4}],
        },
    }


def comparison_content() -> dict[str, Any]:
    rows = []
    for bits, scale in ((1.5, 100.0), (2.0, 2.0)):
        for method, factor in (("searched", 1.0), ("uniform", 9.0), ("one-at-a-time greedy", 0.8), ("first and last high", 3.0)):
            excess, over = scale * factor, scale * (factor - 1)
            rows.append(
                {"bits": bits, "method": method, "bits_per_weight": bits - 0.01, "size_bytes": 300_000, "fid": 3 + excess, "solver": None}
                | {"excess": {"value": excess, "ci": [excess - 0.5, excess + 0.5]}}
                | {"over_uniform": {"value": excess - 9 * scale, "ci": [excess - 9 * scale - 1, excess - 9 * scale + 1]}}
                | {"over_searched": {"value": over, "ci": [over - 1, over + 1]}}
            )
    return {"rows": rows, "conditions": {"n_images": 2000, "steps": 20, "seeds": 3}}


def factors_frame(names: list[str]) -> pd.DataFrame:
    """Factors of every property at two rates, those of a layer multiplying to its harm."""
    random = np.random.default_rng(3)
    parts = []
    for rate in (1.5, 2.0):
        for name in names:
            logs = random.normal(0, 0.2, len(PROPERTIES))
            values = [one.names[0] if one.names else f"{random.normal():.3f}" for one in PROPERTIES.values()]
            own = {"layer": name, "rate": rate, "harm": math.exp(logs.sum()), "property": list(PROPERTIES), "value": values}
            parts.append(pd.DataFrame({**own, "factor": np.exp(logs), "low": np.exp(logs - 0.1), "high": np.exp(logs + 0.1)}))
    return pd.concat(parts, ignore_index=True)


def sensitivity_frame(names: list[str]) -> pd.DataFrame:
    random = np.random.default_rng(2)
    rows = []
    for name in names:
        scale = float(np.exp(random.normal(-1.6, 1.1))) * (4 if "net.2" in name else 1)
        for rate, format in MENU:
            cost = 0.0 if format == "asis" else scale * 2 ** (-1.6 * (rate - 1.5))
            rows.append(
                {
                    "layer": name,
                    "role": role_of(name),
                    "block": block_of(name),
                    "kind": "linear",
                    "n_weights": 16_384,
                    "rate": rate,
                    "format": format,
                    "bits_per_weight": rate - 0.03,
                    "size_bytes": int(rate * 2048),
                    "error": cost / 9,
                    "cost": cost,
                    "cost_low": cost * 0.7 - 0.02,
                    "cost_high": cost * 1.4 + 0.02,
                    "contribution": scale / 3,
                }
            )
    return pd.DataFrame(rows)


def tuned_frame(names: list[str]) -> pd.DataFrame:
    """Tuning leaves the first layer half of its cost, and all others a tenth."""
    table = sensitivity_frame(names)
    share = np.where(table["layer"] == names[0], 0.5, 0.1)
    return table.assign(**{name: table[name] * share for name in ("cost", "cost_low", "cost_high")})


def front_content(names: list[str]) -> dict[str, Any]:
    plans = []
    for place, bits in enumerate((1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)):
        searched, uniform = 2.8 + 9 * math.exp(-1.9 * (bits - 1.2)), 2.8 + 26 * math.exp(-1.6 * (bits - 1.2))
        measured = place % 2 == 0
        plans.append(
            {
                "bits_per_weight": bits - 0.01,
                "size_bytes": int(280_000 * bits),
                "solver": "exact",
                "plan": plan_content(names, bits=bits, size=int(280_000 * bits)),
                "predicted": {"metric": "fid", "value": searched, "std": 0.08 * searched},
                "measured": {"metrics": {"fid": {"value": searched * 1.03, "se": 0.02 * searched}}, "n_images": 1024} if measured else None,
                "uniform_predicted": {"metric": "fid", "value": uniform, "std": 0.05 * uniform},
                "uniform_measured": {"metrics": {"fid": {"value": uniform * 0.98, "se": 0.02 * uniform}}, "n_images": 1024}
                if measured
                else None,
                "uniform_bits_per_weight": bits,
                "difference_ci": [searched - uniform - 0.2, searched - uniform + 0.2] if measured else None,
            }
        )
    return {"plans": plans}


def fit_content() -> dict[str, Any]:
    random = np.random.default_rng(3)
    measured = np.exp(random.normal(1.8, 0.5, 80)) + 3
    rows = [
        {
            "plan_hash": f"{place:016x}",
            "bits_per_weight": float(random.uniform(1.6, 4)),
            "measured": float(value),
            "predicted": float(value * random.normal(1, 0.09)),
        }
        for place, value in enumerate(measured)
    ]
    return {
        "metric": "fid",
        "n_probes": 80,
        "n_trees": 20,
        "spearman": 0.941,
        "spearman_ci": [0.905, 0.963],
        "ceiling": 0.978,
        "ceiling_ci": [0.961, 0.988],
        "baselines": {"average bits": 0.612, "summed error": 0.731, "summed Hessian error": 0.838, "ridge": 0.902},
        "predictions": rows,
        "scores": {
            "sedaq": {"spearman": 0.941, "kendall": 0.81, "ndcg10": 0.97, "mae": 0.4},
            "average bits": {"spearman": 0.612, "kendall": 0.45, "ndcg10": 0.8, "mae": 2.1, "behind": 0.329, "behind_ci": [0.2, 0.45]},
        },
        "learning_curve": [
            {"n_probes": n, "spearman": s, "low": s - 0.02, "high": s + 0.015} for n, s in ((12, 0.81), (25, 0.9), (50, 0.94))
        ],
        "stability": {"rank_correlation_of_halves": 0.91, "least": 0.87, "greatest": 0.95},
        "additivity": {
            "measured_over_sum_alone": [1.8, 1.2, 2.4],
            "error_of_additivity": 0.6,
            "error_of_predictor": 0.1,
            "together_over_apart": [3.1, 2.4, 4.0],
        },
        "findings": ["input: 1.5 bits cost 12 (9 to 15) Fréchet distance, 4 bits 0.1 (0.05 to 0.2): keep at 4 bits or more."],
        "notes": ["1 of 81 probes have no finite fid and are left out"],
    }


def write_run(folder: Path, *, n_blocks: int = 4, only: tuple[str, ...] | None = None) -> Path:
    """Write the named inputs, all where `only` is None; run.json always."""
    names = layer_names(n_blocks)
    wanted = (
        only
        if only is not None
        else ("probes", "fit", "sensitivity", "factors", "tuned fit", "front", "plan", "contest", "tunings", "evaluations")
    )
    settings = {"seed": 7, "n_images": 512, "steps": 10, "extractor": "embedded", "reference": "mnist train"}
    write_json(
        folder / "run.json",
        "run",
        {"subject": {"name": "toy-dit", "fingerprint": FINGERPRINT, "argument": "toy-dit"}, "settings": settings},
    )
    if "probes" in wanted:
        for name, format, value in (("a", "asis", 2.7), ("b", "1x5g4", 14.0)):
            record = {
                "key": name,
                "plan_hash": name,
                "purpose": "probe",
                "layers": dict.fromkeys(names, format),
                "bits_per_weight": 2.0,
                "extractor": "embedded:1",
                "reference": "mnist train:1",
                "seed": 7,
                "start": 0,
                "n_images": 512,
                "steps": 10,
                "metrics": {"fid": {"value": value, "se": 0.1, "halves": [value, value]}},
            }
            append_record(folder / "probes.jsonl", "probe", record)
    if "fit" in wanted:
        write_json(folder / "predictor" / "fit.json", "fit", fit_content())
    if "sensitivity" in wanted:
        (folder / "predictor").mkdir(exist_ok=True)
        sensitivity_frame(names).to_csv(folder / "predictor" / "sensitivity.csv", index=False)
    if "factors" in wanted:
        (folder / "predictor").mkdir(exist_ok=True)
        factors_frame(names).to_csv(folder / "predictor" / "properties.csv", index=False)
    if "tuned fit" in wanted:
        write_json(folder / "predictor_tuned" / "fit.json", "fit", fit_content() | {"tuned_steps": 50, "n_probes": 24})
        tuned_frame(names).to_csv(folder / "predictor_tuned" / "sensitivity.csv", index=False)
    if "front" in wanted:
        write_json(folder / "plans" / "front.json", "front", front_content(names))
    if "plan" in wanted:
        write_json(folder / "plans" / "two.json", "plan", plan_content(names))
    if "contest" in wanted:
        write_json(folder / "contest.json", "contest", comparison_content())
    if "tunings" in wanted:
        for name, factor in (("first", 1.0), ("searched+tuned", 0.5)):
            losses = [[0, 0.02], [50, 0.02 * factor], [100, 0.012 * factor], [150, None]]
            record = {"name": name, "plan_hash": "0" * 16, "held_out_losses": losses, "settings": {"steps": 200}, "seconds": 75.0}
            append_record(folder / "tunings.jsonl", "tuning", record | {"ending": "the loss diverged at step 150"})
    if "evaluations" in wanted:
        for name, size, bits, fid, se, agreement, psnr in EVALUATIONS:
            metrics = {
                "fid": {"value": fid, "se": se},
                "kid": {"value": fid / 1000, "se": se / 1000},
                "agreement": {"value": agreement, "se": 0.0021},
            }
            metrics["psnr"] = {"value": psnr, "se": None if psnr is None else 0.05}  # type: ignore[dict-item]
            record = {
                "name": name,
                "size_bytes": size,
                "bits_per_weight": bits,
                "n_images": 5000,
                "steps": 20,
                "seconds": 61.2,
                "metrics": metrics,
            }
            append_record(folder / "evaluations.jsonl", "evaluation", record)
    return folder


def toy_grids(n_images: int = 48, channels: int = 1, side: int = 28) -> dict[str, torch.Tensor]:
    x, y = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="xy")
    radii = torch.linspace(0.3, 0.8, n_images).view(-1, 1, 1, 1)
    base = torch.exp(-40 * ((x**2 + y**2).sqrt() - radii) ** 2).expand(n_images, channels, side, side)
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
    return {
        name: (base + level * noise).clamp(0, 1)
        for name, level in (("full precision", 0.0), ("uniform", 0.25), ("searched", 0.12), ("searched + tuned", 0.05))
    }


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every input, and its report."""
    from sedaq.reports.report import write_report

    folder = write_run(tmp_path_factory.mktemp("run"))
    write_report(folder, grids=toy_grids())
    return folder


def damage(path: Path, field: str, value: Any, kind: str) -> None:
    """Write a file again, well sealed, with one field of its content replaced or, for None, removed."""
    body = json.loads(path.read_text())
    content = {key: entry for key, entry in body.items() if key not in ("kind", "schema", "sha256")}
    content[field] = value
    write_json(path, kind, {key: entry for key, entry in content.items() if entry is not None})
