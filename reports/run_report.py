"""The report of an open run: samples the images that the page shows, then writes it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..aq.plans.plan import Plan
from ..errors import UntrustedError
from ..models.noise import purpose_seed
from ..models.subject import Subject
from ..outputs import check_out
from ..runtime.status import telling
from ..runtime.tasks import tensor_task
from ..sensitivity.kept_evaluations import load_applied
from ..sensitivity.probing.assembly import Assembly
from ..sensitivity.run import Run
from ..storage import file_sha256, fingerprint
from .inputs import plan_file
from .report import MARK, write_report

log = logging.getLogger("sedaq")
N_SHOWN = 20  # images in a grid


@telling("report")
def write_run_report(run: Run, out: Path | None = None, plan: Path | None = None) -> Path:
    """The page of `run`, with images of the full-precision model, of plans/uniform.json and of the plan that the page is about, and of tuned folders in models/.

    Images that were not sampled before are left out where the model may not be loaded.
    """
    if out is not None:
        check_out("out", out, MARK)  # before images are sampled
    if plan is not None:
        Plan.load(plan).validate(run.subject)
    return write_report(run.folder, out, grids=image_grids(run, plan), plan=plan)


def image_grids(run: Run, plan: Path | None = None) -> dict[str, torch.Tensor]:
    """The same noise through every variant that the run holds: name → images (n, C, H, W)."""

    seed, sampling = purpose_seed(run.settings.seed, "figures"), replace(run.settings.sampling, steps=None)

    grids: dict[str, torch.Tensor] = {}

    def add(name: str, variant: Any, sample: Callable[[], torch.Tensor]) -> None:
        key = fingerprint([run.subject.fingerprint, variant, sampling.identity, seed, N_SHOWN])
        task = tensor_task("images of the report", run.folder / "images" / f"{key}.safetensors", "images", sample)
        try:
            grids[name] = task.result()
        except UntrustedError as error:
            log.warning("no images of %s: %s", name, error)

    def sampled(subject: Subject) -> torch.Tensor:
        images = subject.sample(sampling, seed=seed, n_images=N_SHOWN, may_overflow=True)
        return images if images.ndim == 4 else images[:, images.shape[1] // 2]  # the middle frame of a video

    def of_plan(plan: Plan) -> torch.Tensor:
        assembly = Assembly(run.subject, run.store)
        assembly.set(plan.formats)
        try:
            return sampled(run.subject)
        finally:
            assembly.restore()

    add("full precision", None, lambda: sampled(run.subject))
    plans = {"uniform": run.folder / "plans" / "uniform.json", "searched": plan or plan_file(run.folder / "plans")}
    for name, found in [(name, Plan.load(path)) for name, path in plans.items() if path is not None and path.exists()]:
        found.validate(run.subject)
        add(name, found.hash, partial(of_plan, found))
    tuned = run.folder / "models" / "searched+tuned"
    if tuned.exists():
        weights = [file_sha256(path) for path in sorted(tuned.rglob("*.safetensors"))]
        add("searched + tuned", weights, lambda: sampled(load_applied(run, tuned)))
    return grids
