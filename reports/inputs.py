"""What a run folder holds, read and checked, for figures and page to draw from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..aq.plans.plan import Plan
from ..errors import InputError
from ..runtime.owner import owner, read_own_records
from ..runtime.tasks import as_damage
from ..sensitivity.metrics.registry import DEFAULT, Metric, metric_of
from ..sensitivity.prior.properties import PROPERTIES
from ..sensitivity.run import probe_journal
from ..storage import file_sha256, load_tensors, read_json, save_tensors
from .numbers import as_float

_TEXT_COLUMNS = ("layer", "role", "block", "kind", "format")
_NUMBER_COLUMNS = ("n_weights", "rate", "bits_per_weight", "size_bytes", "error", "cost", "cost_low", "cost_high", "contribution")


@dataclass(frozen=True)
class RunData:
    """Everything that a report shows. What the run does not have yet is None or empty."""

    run: dict[str, Any]
    probes: list[dict[str, Any]] = field(default_factory=list)
    fit: dict[str, Any] | None = None
    sensitivity: pd.DataFrame | None = None  # one row per layer and menu entry, in module order
    factors: pd.DataFrame | None = None  # one row per layer, rate and property, where other models taught a prior
    tuned_fit: dict[str, Any] | None = None  # of plans after a short tuning, and its table
    tuned_sensitivity: pd.DataFrame | None = None
    front: list[dict[str, Any]] | None = None
    plan: Plan | None = None
    plan_name: str = ""  # where the plan comes from, for people
    evaluations: list[dict[str, Any]] = field(default_factory=list)  # the last record of each name
    comparison: dict[str, Any] | None = None  # searched plans beside what others do, {rows, conditions} of `sedaq bench search`
    tunings: list[dict[str, Any]] = field(default_factory=list)  # the last record of each name that `sedaq apply` wrote
    grids: dict[str, torch.Tensor] = field(default_factory=dict)  # (n, C, H, W) in [0, 1], by variant

    @property
    def settings(self) -> dict[str, Any]:
        return self.run.get("settings") or {}

    @property
    def metric(self) -> str:
        """The fidelity that was predicted and searched for."""
        return self.fit["metric"] if self.fit else DEFAULT

    @property
    def searched_metric(self) -> Metric:
        """The row of `metric` in the table of metrics. Raises InputError for one that the table does not have."""
        return metric_of(self.metric)

    @property
    def n_probes(self) -> int:
        """Measurements that the predictor can learn from; those of plans that a search chose are not among them."""
        return sum(probe.get("purpose", "probe") == "probe" for probe in self.probes)

    @cached_property
    def cheapest(self) -> pd.DataFrame:
        """The row of every layer's lowest rate, in module order. Needs `sensitivity`."""
        assert self.sensitivity is not None
        return lowest_rates(self.sensitivity)


def lowest_rates(sensitivity: pd.DataFrame) -> pd.DataFrame:
    """The row of every layer's lowest rate, in module order."""
    rows = sensitivity.reset_index(drop=True)
    return rows.loc[sorted(rows.groupby("layer", sort=False)["rate"].idxmin())]


@contextmanager
def complaints(where: object, remedy: str) -> Iterator[None]:
    """Turn a field that is missing or of the wrong type into the one line that says where, and the remedy."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{where}: field {error} is missing; {remedy}") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{where}: a field is of the wrong type ({str(error).splitlines()[0]}); {remedy}") from error


def read_run(folder: Path, grids: Mapping[str, torch.Tensor] | None = None, plan_path: Path | None = None) -> RunData:
    """Read a run folder; only run.json must be there.

    Args:
        grids: images by variant, (n, C, H, W) in [0, 1]; those of an earlier report where None.
        plan_path: the plan; the one of `plan_file` where None.

    Raises:
        InputError: a file is damaged, lacks a field, or belongs to another model.
    """
    folder = Path(folder)
    if not (folder / "run.json").exists():
        raise InputError(f"{folder}: holds no run.json; pass a run folder, which `sedaq probe` makes")
    run, own = read_json(folder / "run.json", "run"), owner(folder)
    front = _read_front(folder / "plans" / "front.json", own)
    plan, plan_name = (Plan.load(plan_path), str(plan_path)) if plan_path else _read_plan(folder / "plans", front)
    if plan is not None:
        _check_plan(plan, folder / plan_name, run)
    latest = {record["name"]: record for record in read_own_records(folder / "evaluations.jsonl", "evaluation")}
    return RunData(
        run=run,
        probes=probe_journal(folder).read(),
        fit=_read_fit(folder / "predictor", own),
        sensitivity=read_sensitivity(folder / "predictor" / "sensitivity.csv"),
        factors=read_factors(folder / "predictor" / "properties.csv"),
        tuned_fit=_read_fit(folder / "predictor_tuned", own),
        tuned_sensitivity=read_sensitivity(folder / "predictor_tuned" / "sensitivity.csv"),
        front=front,
        plan=plan,
        plan_name=plan_name,
        evaluations=list(latest.values()),
        comparison=read_json(folder / "contest.json", "contest", owner=own) if (folder / "contest.json").exists() else None,
        tunings=_read_tunings(folder / "tunings.jsonl"),
        grids=_stored_grids(folder / "figures" / "grids.safetensors", own) if grids is None else checked_grids(grids),
    )


def read_sensitivity(path: Path) -> pd.DataFrame | None:
    """The table that `sedaq fit` writes, None where there is none. Raises InputError for a column that is missing or not numeric."""
    if not path.exists():
        return None
    remedy = "write it again with `sedaq fit`"
    try:
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys(_TEXT_COLUMNS, str),
            keep_default_na=False,
            na_values={name: ["", "nan", "NaN"] for name in _NUMBER_COLUMNS},
        )
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: not a readable CSV table ({str(error).splitlines()[0]}); {remedy}") from error
    for column in (*_TEXT_COLUMNS, *_NUMBER_COLUMNS):
        if column not in table:
            raise InputError(f"{path}: column '{column}' is missing; {remedy}")
    for column in _NUMBER_COLUMNS:
        try:
            table[column] = pd.to_numeric(table[column]).astype(float)
        except ValueError as error:
            raise InputError(f"{path}: column '{column}' holds what is not a number ({error}); {remedy}") from error
    if table.empty or table["rate"].isna().any():
        raise InputError(f"{path}: {'holds no layer' if table.empty else 'a rate is missing'}; {remedy}")
    return table


def read_factors(path: Path) -> pd.DataFrame | None:
    """The table of properties that `sedaq fit` writes, None where there is none. Raises InputError for a column that is missing or not numeric."""
    if not path.exists():
        return None
    try:
        table = pd.read_csv(path, dtype={"layer": str, "property": str, "value": str}, keep_default_na=False)
        numbers = table[["rate", "harm", "factor", "low", "high"]].astype(float)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{path}: not the table of properties ({str(error).splitlines()[0]}); write it again with `sedaq fit`") from error
    if "value" not in table or not set(table["property"]) <= set(PROPERTIES) or not (numbers > 0).all(axis=None):
        raise InputError(
            f"{path}: names other properties than this version has, or a factor is not above 0; write it again with `sedaq fit`"
        )
    return table.assign(**{name: numbers[name] for name in numbers})


def _check_plan(plan: Plan, path: Path, run: dict[str, Any]) -> None:
    """Raise InputError for a plan of another model, or of a run with other settings."""
    subject, settings = run["subject"], run["settings"]
    # Plans hold for any prompts; a run is one of its prompts, too. Runs of version 0.1.0 name the latter alone.
    if plan.subject_fingerprint not in {subject["fingerprint"], subject.get("model_fingerprint", subject["fingerprint"])}:
        raise InputError(
            f"{path}: field 'fingerprint' is {plan.subject_fingerprint}, the run's is {subject['fingerprint']}; the plan is of another model, move it away"
        )
    made = plan.encoding.get("calibration_settings", {}) | plan.encoding
    own = settings | {"steps": settings.get("calibration_steps") or settings.get("steps")}
    for name in ("effort", "seed", "steps", "weighting"):
        if name in made and name in own and made[name] != own[name]:
            raise InputError(
                f"{path}: was made with {name} = {made[name]!r}, the run with {own[name]!r}; the plan is of another run, move it away"
            )


def _read_fit(folder: Path, own: Mapping[str, str]) -> dict[str, Any] | None:
    """What `fit` said, unless there is none. Raises InputError where one of its tables is not as it was fitted."""
    if not (folder / "fit.json").exists():
        return None
    fit = read_json(folder / "fit.json", "fit", owner=own)
    for name, sha256 in fit.get("tables", {}).items():
        path = folder / f"{name}.csv"
        if path.is_file() and file_sha256(path) != sha256:
            raise InputError(f"{path}: is not as it was fitted; run `sedaq fit` again")
    return fit


def _read_tunings(path: Path) -> list[dict[str, Any]]:
    latest: dict[str, dict[str, Any]] = {}
    for record in read_own_records(path, "tuning"):
        latest.pop(record["name"], None)
        if record["held_out_losses"]:  # none where there was nothing to tune
            latest[record["name"]] = record
    return list(latest.values())


def _read_front(path: Path, own: Mapping[str, str]) -> list[dict[str, Any]] | None:
    if not path.exists():
        return None
    return sorted(read_json(path, "front", owner=own)["plans"], key=lambda plan: float(plan["bits_per_weight"])) or None


def plan_file(folder: Path) -> Path | None:
    """The plan that a page is about, by its name: plan.json, else the one of fewest bits. uniform.json is what it is held against."""
    names = sorted((path.name for path in folder.glob("*.json") if path.name not in ("front.json", "uniform.json")), key=_bits_in)
    return folder / ("plan.json" if "plan.json" in names else names[0]) if names else None


def _bits_in(name: str) -> tuple[float, str]:
    """Plans are named by their bits, unless the user named them."""
    try:
        return float(name.removesuffix(".json")), name
    except ValueError:
        return math.inf, name


def _read_plan(folder: Path, front: list[dict[str, Any]] | None) -> tuple[Plan | None, str]:
    """The plan of `plan_file`; where only a front was searched, the one in its middle."""
    path = plan_file(folder)
    if path is not None:
        return Plan.load(path), f"plans/{path.name}"
    if front:
        return Plan.from_json(front[len(front) // 2]["plan"], str(folder / "front.json")), "plans/front.json"
    return None, ""


def checked_grids(grids: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The grids as float32. Raises InputError unless all are (n, C, H, W) of one shape with 1 or 3 channels."""
    shapes = {name: tuple(images.shape) for name, images in grids.items()}
    first = next(iter(shapes.values()), ())
    for name, shape in shapes.items():
        if len(shape) != 4 or 0 in shape or shape[1] not in (1, 3):
            raise InputError(f"image grid {name!r} has shape {shape}; pass images of shape (n, 1 or 3, height, width)")
        if shape != first:
            raise InputError(
                f"image grid {name!r} has shape {shape}, another one {first}; pass equally many images of one size, from the same noise"
            )
    return {name: images.detach().to("cpu", torch.float32) for name, images in grids.items()}


def in_8_bits(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as uint8, black where they are not numbers."""
    return (images.nan_to_num(0, posinf=0, neginf=0).clamp(0, 1) * 255).round().to(torch.uint8)


def save_grids(path: Path, grids: Mapping[str, torch.Tensor]) -> None:
    """Keep the grids, 8 bits a channel, so that a later report can show them again."""
    save_tensors(
        path, "grids", {name: in_8_bits(images) for name, images in grids.items()}, {"order": list(grids), **owner(path.parents[1])}
    )


def _stored_grids(path: Path, own: Mapping[str, str]) -> dict[str, torch.Tensor]:
    if not path.exists():
        return {}
    images, metadata = load_tensors(path, "grids", owner=own)
    with as_damage(path):
        return checked_grids({name: images[name].float() / 255 for name in metadata["order"]})


def fidelity_of(measured: Any, metric: str) -> tuple[float, float]:
    """Value and standard error (or deviation) of one metric; NaN where there is none.

    Args:
        measured: {metrics: {name: {value, se}}}, or {name: {value, se}}, or {metric: name, value, std} of a prediction; or None.
    """
    content = measured or {}
    entry = content if content.get("metric") == metric else content.get("metrics", content).get(metric) or {}
    return as_float(entry.get("value")), as_float(entry.get("se", entry.get("std")))


def text_of(value: Any) -> str:
    """A setting as people read it."""
    if isinstance(value, (dict, list)):
        return re.sub(r'[{}"\[\]]', "", json.dumps(value, ensure_ascii=False)) or "none"
    if value is None or isinstance(value, bool):
        return "none" if value is None else "yes" if value else "no"
    return re.sub(r":[0-9a-f]{16}$", "", str(value))  # the fingerprint behind an extractor's or a reference's name
