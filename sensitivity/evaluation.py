"""Measure the images of one subject, full-precision or quantized: the verb `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..aq.export.apply import PLAN_FILE, apply
from ..aq.formats import AS_IS
from ..aq.modules.layers import densify, quantized_modules
from ..aq.plans.plan import Plan, model_file_bytes, weight_bits
from ..aq.tuning.settings import TuneConfig
from ..errors import InputError
from ..kernels.timing import clock
from ..models.loading import load
from ..models.noise import purpose_seed
from ..models.sampling import SamplingConfig, conditions_of, sample_in_chunks
from ..models.subject import Subject
from ..runtime.tasks import locked, tensor_task
from ..storage import append_record, fingerprint, read_records
from .metrics.extractors import CHOICES, load_extractor
from .metrics.reference import load_reference, sampled_reference, shipped_reference
from .metrics.registry import measure
from .metrics.sample import Features, Sample
from .run import Run


@dataclass(frozen=True)
class EvaluationResult:
    """The images of a model, measured."""

    metrics: Mapping[str, Mapping[str, Any]]  # by name: value, se (standard error), halves
    n_images: int
    steps: int | None
    seed: int
    extractor: str
    reference: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What the verb `evaluate` prints as JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def evaluate(
    subject: str | Path | Subject,
    *,
    against: str | Path | Subject | None = None,
    n_images: int = 2000,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    extractor: str | None = None,
    reference: str | None = None,
    weights: str | Path | None = None,
    keep_in: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Metrics of `n_images` images on noise that no plan was chosen by.

    Args:
        subject: whatever sedaq.load takes, or a folder that `sedaq apply` wrote; its layers are de-quantized once, for speed.
        against: the full-precision subject, for paired measures (PSNR, feature distance) on the same noise.
        reference: images or statistics; the test set's statistics by default for shipped subjects and what was made from them, and of others
            images that `against` makes of other noise.
        weights: folder that sedaq wrote of a subject that is no diffusers model.
        keep_in: folder that keeps full-precision images for other evaluations.

    Returns:
        {metrics: {name: {value, se, halves}}, n_images, steps, seed, extractor, reference, seconds}

    Raises:
        InputError: where no extractor or reference is known, or an argument is unusable.
    """
    if n_images < 8:
        raise InputError(f"`images` {n_images}: a Fréchet distance needs at least 8 images, and says little below 500")
    start = clock()
    sampling = sampling or SamplingConfig()
    lines = sampling.prompt_lines
    measured = load(subject, prompts=lines, device=device, quantized=True, dtype=sampling.dtype, weights=weights)
    is_quantized = bool(quantized_modules(measured.denoiser))
    densify(measured.denoiser)
    name = extractor or measured.extractor
    if name is None:
        raise InputError(f"subject {measured.name} has no extractor of its own; choose one with `extractor`: {CHOICES}")
    measured.check(sampling)
    extract = load_extractor(name, image_shape=measured.shape_of(sampling), device=device)

    def sampled(of: Subject, description: str, folder: Path | None) -> tuple[torch.Tensor, Features]:
        images = _images(of, sampling, purpose_seed(seed, "evaluate"), n_images, description, folder)
        return images, extract(images)

    full = None if against is None else load(against, prompts=lines, device=device, dtype=sampling.dtype)
    if full is not None:
        full.check(sampling)
        if full.shape_of(sampling) != measured.shape_of(sampling) or full.conditions != measured.conditions:
            raise InputError(
                f"`against` {full.name}: makes other images than {measured.name}, so they cannot be paired; pass the model that it was made from"
            )

    def default() -> Any:
        if measured.extractor == "embedded" and extract.name == "embedded":
            return shipped_reference("test", extract)
        if full is not None:
            return sampled_reference(full, sampling, extract, seed)
        raise InputError("no reference to compare with; give real images or statistics as `reference`, or a model as `against`")

    target = load_reference(reference, extract, image_shape=measured.shape_of(sampling), default=default)
    images, features = sampled(measured, "sampling", None if is_quantized else keep_in)
    paired = None if full is None else sampled(full, "sampling in full precision", keep_in)
    requested = extract.requested(conditions_of(measured.conditions, 0, n_images))
    full_precision = Sample(*paired, target, cycle=measured.cycle) if paired else None
    metrics = measure(Sample(images, features, target, requested, full_precision, measured.cycle), seed=seed)
    return {
        "metrics": {key: metric.to_json() for key, metric in metrics.items()},
        "n_images": n_images,
        "steps": sampling.steps,
        "seed": seed,
        "extractor": f"{extract.name}:{extract.fingerprint}",
        "reference": f"{target.description}:{target.fingerprint}",
        "seconds": round(clock() - start, 1),
    }


def _images(of: Subject, sampling: SamplingConfig, seed: int, n_images: int, description: str, folder: Path | None) -> torch.Tensor:
    """Sampled now, or kept by an earlier evaluation in `folder`."""

    def make() -> torch.Tensor:
        return sample_in_chunks(of.sample, description, sampling, seed=seed, n_images=n_images)

    if folder is None:
        return make()
    key = fingerprint([of.fingerprint, sampling.identity, sampling.steps, seed, n_images])
    return tensor_task(f"images of {of.name}", folder / f"{key}.safetensors", "images", make).result()


def load_applied(run: Run, folder: str | Path) -> Subject:
    """A folder that was applied, to be sampled as the run's model is."""
    sampling, source = run.settings.sampling, run.subject.source
    how: dict[str, Any] = {"prompts": sampling.prompt_lines, "device": run.device, "dtype": sampling.dtype}
    return load(source, weights=folder, **how) if source else load(folder, quantized=True, **how)


def evaluate_plan(
    run: Run, name: str, plan: Plan | None, *, tune_steps: int = 0, n_images: int = 2000, steps: int | None = None
) -> dict[str, Any]:
    """Apply a plan of a run to a folder beside it, evaluate that folder against full precision, and keep the row in evaluations.jsonl.

    Args:
        name: of the row and of the folder models/NAME; plan None evaluates the subject itself. A row that is there is read back.
    """
    path = run.folder / "evaluations.jsonl"
    key = fingerprint([name, run.subject.fingerprint, plan.hash if plan else None, tune_steps, n_images, steps])
    for record in read_records(path, "evaluation"):
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
        keep_in=run.folder / "images",
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
            r for r in read_records(run.folder / "tunings.jsonl", "tuning") if plan and (r["name"], r["plan_hash"]) == (name, plan.hash)
        ]
        tune_steps = tunings[-1]["held_out_losses"][-1][0] if tunings and tunings[-1]["held_out_losses"] else 0
    as_is = {layer.name: AS_IS for layer in run.subject.layers}
    size = plan.size_bytes if plan else model_file_bytes(run.subject)
    bits = plan.bits_per_weight if plan else weight_bits(run.subject, as_is)
    record = {"key": key, "name": name, "size_bytes": size, "bits_per_weight": bits, "tune_steps": tune_steps, **result}
    path = run.folder / "evaluations.jsonl"
    with locked(path):  # another process may evaluate, too
        append_record(path, "evaluation", record)
    return record


def plan_of(run: Run, folder: str | Path) -> Plan:
    """The plan of a folder that sedaq wrote. Raises InputError where it has none, or one of another model than the run's."""
    found = [path for path in (Path(folder) / PLAN_FILE, *sorted(Path(folder).glob(f"*/{PLAN_FILE}"))) if path.is_file()]
    if not found:
        raise InputError(f"{folder}: has no {PLAN_FILE}; a run keeps evaluations of folders that `sedaq apply` wrote")
    plan = Plan.load(found[0])
    plan.validate(run.subject)
    return plan
