"""The encodings that a plan was made with, from its run or made again."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..aq.plans.plan import Plan
from ..aq.plans.store import EncodingStore
from ..errors import InputError
from ..models.loading import load
from ..models.sampling import SamplingConfig
from ..models.subject import Subject
from ..storage import file_sha256
from .run import Run

log = logging.getLogger("sedaq")


def store_for_plan(
    plan: Plan,
    subject: str | Subject,
    run: Path | None,
    scratch: Path,
    *,
    effort: str | None = None,
    exclude: tuple[str, ...] = (),
    sampling: SamplingConfig | None = None,
    device: str = "cpu",
    hessian: str | None = None,
    mapped: bool = False,
) -> tuple[Plan, EncodingStore]:
    """The encodings that a plan was made with: those of its run, or made anew in `scratch` by what the plan's `encoding` field says.

    Args:
        hessian: instead of a calibration, "none" for the identity or a file of EncodingStore's `hessians`.
        mapped: leave the weights in their files; nothing can be sampled then.

    With another `effort` or `hessian` the plan comes back without what was predicted and measured, for that no longer holds.
    """
    sampling = sampling or SamplingConfig()
    if run is not None:
        opened = Run.open(run, subject=subject, device=device)
        folder, loaded = opened.folder, opened.subject
        if plan.encoding != opened.store.identity:
            log.warning("%s: the plan was made with other encodings than this run's, which are looked for here", run)
    else:
        prompts, components = sampling.prompt_lines, plan.components
        folder = scratch
        dtype = sampling.dtype or plan.encoding.get("calibration_settings", {}).get("dtype")
        loaded = load(subject, prompts=prompts, exclude=exclude, components=components, device=device, mapped=mapped, dtype=dtype)
    plan.validate(loaded)
    path = None if hessian in (None, "none") else Path(str(hessian))
    if path is not None and not path.is_file():
        raise InputError(f"`hessian` {path}: no such file; give a safetensors file with a matrix for each layer, or none")
    instead: dict[str, Any] = {"n_images": 0} if hessian == "none" else {"hessian": file_sha256(path)[:16]} if path else {}
    try:
        made = EncodingStore(
            loaded,
            folder,
            calibration=plan.encoding["calibration_settings"] if hessian is None else {"seed": 0, **instead},
            hessians=path,
            effort=effort or plan.encoding["effort"],
            seed=plan.encoding["seed"],
            given=sampling if run is None else opened.settings.sampling,
        )
    except KeyError as error:
        raise InputError(f"the plan's field 'encoding' lacks {error}; search again") from error
    if hessian is not None or (effort is not None and effort != plan.encoding["effort"]):
        plan = replace(plan, encoding=made.identity, predicted=None, measured=None)
    return plan, made
