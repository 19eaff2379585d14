"""Which model a kind of record has, and what is wrong with a record that is not of it."""

from __future__ import annotations

import re
import reprlib
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from . import fits, folders, plans, results, runs, tensors

RECORDS: dict[str, Any] = {
    "run": runs.Run,
    "outline": runs.Outline,
    "probe": runs.Probe,
    "probing": runs.Probing,
    "menu": runs.Menu | runs.SharedMenu,
    "menu of a layer": runs.Menu,  # by which its readers tell them apart
    "menu of a role": runs.SharedMenu,
    "traits": runs.Traits,
    "properties": runs.Properties,
    "activations": runs.Activations,
    "step times": runs.StepTimes,
    "plan": plans.Plan,
    "front": plans.Front,
    "search": plans.Search,
    "fit": fits.Fit,
    "predictor": fits.Predictor,
    "prior": fits.Prior,
    "contest": results.Contest,
    "evaluation": results.Evaluation,
    "evaluation result": results.EvaluationResult,
    "status": runs.Status,
    "hash": folders.Hash,
    "tuning": results.Tuning,
    "manifest": folders.Manifest,
    "subject": folders.Subject,
    "demo": folders.Demo,
    "weights": folders.Weights,
    "kernel costs": folders.Costs,
    "gpu tiles": folders.GpuTiles,
    "quantization_config": folders.Quantization,
}
METADATA: dict[str, Any] = {
    "hessian": tensors.Hessian,
    "encoding": tensors.Encoding,
    "book": tensors.Book,
    "gradients": tensors.Gradients,
    "features": tensors.Features,
    "reference": tensors.Reference,
    "grids": tensors.Grids,
    "tuned": tensors.Tuned,
    "tuning": tensors.TuningState,
    "replay": tensors.Replay,
}


def complaint(kind: str, content: dict[str, Any], *, of_tensors: bool = False) -> str | None:
    """What is wrong with the content of a record: a field, and what it must be. None where nothing is, and for kinds without a model."""
    model = (METADATA if of_tensors else RECORDS).get(kind)
    if model is None:
        return None
    try:
        _adapter(kind, of_tensors).validate_python(content)
        return None
    except ValidationError as error:
        said = [
            _said(found["msg"], found["type"], found["loc"], content) for found in error.errors(include_url=False, include_context=False)
        ]
        return max(said, key=lambda one: one[0])[1]  # of the branches of a union, the one that went furthest


@cache
def _adapter(kind: str, of_tensors: bool) -> TypeAdapter[Any]:
    return TypeAdapter((METADATA if of_tensors else RECORDS)[kind])


def _said(message: str, kind: str, location: tuple[int | str, ...], content: Any) -> tuple[int, str]:
    """How deep the fault lies, and the words for it."""
    place: list[str] = []
    value = content
    for part in location:  # names of models and types lie between those of fields
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            place, value = [*place, str(part)], value[part]  # type: ignore[index]
    if kind == "missing":
        return len(place), f"field '{'.'.join([*place, str(location[-1])])}' is missing"
    said = re.sub(r"^(Value error, must|\w+ should) ", "", re.sub(r"dictionary or instance of \w+", "JSON object", message))
    shown = reprlib.repr(value) if place else "what it holds"
    return len(place), f"field '{'.'.join(place)}' must {said}, not {shown}" if place else f"its content must {said}"
