"""The report of an open run: samples the images that the page shows, then writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..aq.plans.plan import Plan
from ..models.loading import load
from ..models.noise import purpose_seed
from ..models.subject import Subject
from ..runtime.tasks import tensor_task
from ..sensitivity.probing.assembly import Assembly
from ..sensitivity.run import Run
from ..storage import file_sha256, fingerprint
from .report import write_report

N_SHOWN = 20  # images in a grid


def write_run_report(run: Run, out: Path | None = None) -> Path:
    """The page of `run`, with images of the full-precision model, of plans/uniform.json and plans/plan.json, and of tuned folders in models/."""
    return write_report(run.folder, out, grids=image_grids(run))


def image_grids(run: Run) -> dict[str, torch.Tensor]:
    """The same noise through every variant that the run holds: name → images (n, C, H, W)."""

    seed, sampling = purpose_seed(run.settings.seed, "figures"), replace(run.settings.sampling, steps=None)

    def grid(variant: Any, sample: Callable[[], torch.Tensor]) -> torch.Tensor:
        key = fingerprint([run.subject.fingerprint, variant, sampling.identity, seed, N_SHOWN])
        return tensor_task("images of the report", run.folder / "images" / f"{key}.safetensors", "images", sample).result()

    def sampled(subject: Subject) -> torch.Tensor:
        images = subject.sample(sampling, seed=seed, n_images=N_SHOWN)
        return images if images.ndim == 4 else images[:, images.shape[1] // 2]  # the middle frame of a video

    def of_plan(plan: Plan) -> torch.Tensor:
        assembly = Assembly(run.subject, run.store)
        assembly.set(plan.formats)
        try:
            return sampled(run.subject)
        finally:
            assembly.restore()

    grids = {"full precision": grid(None, lambda: sampled(run.subject))}
    plans = {name: run.folder / "plans" / file for name, file in (("uniform", "uniform.json"), ("searched", "plan.json"))}
    for name, plan in [(name, Plan.load(path)) for name, path in plans.items() if path.exists()]:
        plan.validate(run.subject)
        grids[name] = grid(plan.hash, partial(of_plan, plan))
    tuned = run.folder / "models" / "searched+tuned"
    if tuned.exists():
        weights = [file_sha256(path) for path in sorted(tuned.rglob("*.safetensors"))]
        prompts = run.settings.sampling.prompt_lines
        grids["searched + tuned"] = grid(
            weights, lambda: sampled(load(tuned, prompts=prompts, quantized=True, device=run.device, dtype=run.settings.sampling.dtype))
        )
    return grids
