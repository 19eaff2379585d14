"""Evaluations that a run keeps: of its plans, and of folders that were applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..aq.export.apply import PLAN_FILE, TUNINGS_FILE, apply
from ..aq.formats import AS_IS
from ..aq.plans.plan import Plan, model_file_bytes, weight_bits
from ..aq.tuning.settings import TuneConfig
from ..errors import InputError
from ..models.loading import load
from ..models.subject import Subject
from ..runtime.owner import owner, read_own_records
from ..runtime.status import telling
from ..runtime.tasks import locked
from ..storage import append_record, fingerprint
from .evaluation import evaluate
from .run import Run


def load_applied(run: Run, folder: str | Path) -> Subject:
    """A folder that was applied, to be sampled as the run's model is."""
    sampling, source = run.settings.sampling, run.subject.source
    how: dict[str, Any] = {"prompts": sampling.prompt_lines, "device": run.device, "dtype": sampling.dtype}
    return load(source, weights=folder, **how) if source else load(folder, quantized=True, **how)


@telling("evaluate")
def evaluate_plan(
    run: Run, name: str, plan: Plan | None, *, tune_steps: int = 0, n_images: int = 2000, steps: int | None = None
) -> dict[str, Any]:
    """Apply a plan of a run to a folder beside it, evaluate that folder against full precision, and keep the row in evaluations.jsonl.

    Args:
        name: of the row and of the folder models/NAME; plan None evaluates the subject itself. A row that is there is read back.
    """
    path = run.folder / "evaluations.jsonl"
    key = fingerprint([name, run.subject.fingerprint, plan.hash if plan else None, tune_steps, n_images, steps])
    for record in read_own_records(path, "evaluation"):
        if record["key"] == key:
            return record
    run.subject.denoiser  # noqa: B018  loads the model that the run's file names, or says that it may not be
    subject: Any = run.subject_argument or run.subject
    folder = run.folder / "models" / name.replace(" ", "")
    if plan is not None:
        apply(run.subject, plan, run.store, folder, tune=TuneConfig(steps=tune_steps), sampling=run.settings.sampling)
    settings = run.settings
    result = evaluate(
        subject if plan is None or run.subject.source else folder,
        weights=folder if plan is not None and run.subject.source else None,
        against=None if plan is None else subject,
        n_images=n_images,
        sampling=replace(settings.sampling, steps=steps),
        seed=settings.seed,
        extractor=settings.extractor,
        reference=settings.reference,
        keep_in=run.folder,
        device=run.device,
    )
    return keep_evaluation(run, name, result, plan, key=key, tune_steps=tune_steps)


def keep_evaluation(
    run: Run, name: str, result: Mapping[str, Any], plan: Plan | None, *, key: str = "", tune_steps: int | None = None
) -> dict[str, Any]:
    """Keep a result in the run's evaluations.jsonl, for the report; the last row of a name counts. Returns the row.

    Args:
        plan: of the folder that was measured, None where it was the run's model itself.
        tune_steps: that the folder was tuned for; those of the run's last tuning of that name and plan where None.
    """
    if tune_steps is None:
        tunings = [
            r for r in read_own_records(run.folder / TUNINGS_FILE, "tuning") if plan and (r["name"], r["plan_hash"]) == (name, plan.hash)
        ]
        tune_steps = tunings[-1]["held_out_losses"][-1][0] if tunings and tunings[-1]["held_out_losses"] else 0
    as_is = {layer.name: AS_IS for layer in run.subject.layers}
    size = plan.size_bytes if plan else model_file_bytes(run.subject)
    bits = plan.bits_per_weight if plan else weight_bits(run.subject, as_is)
    record = {"key": key, "name": name, "size_bytes": size, "bits_per_weight": bits, "tune_steps": tune_steps, **result}
    path = run.folder / "evaluations.jsonl"
    with locked(path):  # another process may evaluate, too
        append_record(path, "evaluation", {**record, **owner(run.folder)})
    return record


def plan_of(run: Run, folder: str | Path) -> Plan:
    """The plan of a folder that sedaq wrote. Raises InputError where it has none, or one of another model than the run's."""
    found = [path for path in (Path(folder) / PLAN_FILE, *sorted(Path(folder).glob(f"*/{PLAN_FILE}"))) if path.is_file()]
    if not found:
        raise InputError(f"{folder}: has no {PLAN_FILE}; a run keeps evaluations of folders that `sedaq apply` wrote")
    plan = Plan.load(found[0])
    plan.validate(run.subject)
    return plan
