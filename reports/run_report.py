"""The report of an open run: samples the images that the page shows, then writes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..aq.plans.plan import Plan
from ..models.loading import load
from ..models.noise import purpose_seed
from ..sensitivity.probing.assembly import Assembly
from ..sensitivity.run import Run
from .report import write_report

N_SHOWN = 20  # images in a grid


def write_run_report(run: Run, out: Path | None = None) -> Path:
    """The page of `run`, with images of the full-precision model, of plans/uniform.json and plans/plan.json, and of tuned folders in models/."""
    return write_report(run.folder, out, grids=image_grids(run))


def image_grids(run: Run) -> dict[str, torch.Tensor]:
    """The same noise through every variant that the run holds: name → images (n, C, H, W)."""

    def sample(subject: object) -> torch.Tensor:
        seed = purpose_seed(run.settings.seed, "figures")
        return subject.sample(replace(run.settings.sampling, steps=None), seed=seed, n_images=N_SHOWN)  # type: ignore[attr-defined, no-any-return]

    grids = {"full precision": sample(run.subject)}
    plans = {name: run.folder / "plans" / file for name, file in (("uniform", "uniform.json"), ("searched", "plan.json"))}
    present = {name: Plan.load(path) for name, path in plans.items() if path.exists()}
    assembly = Assembly(run.subject, run.store)
    for name, plan in present.items():
        plan.validate(run.subject)
        assembly.set(plan.formats)
        grids[name] = sample(run.subject)
    assembly.restore()
    tuned = run.folder / "models" / "searched+tuned"
    if tuned.exists():
        grids["searched + tuned"] = sample(load(tuned, prompts=run.settings.sampling.prompt_lines, quantized=True, device=run.device))
    return grids
