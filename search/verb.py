"""The verb `search` on a run folder: what find_plan and find_front need comes from the run, what they find goes into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..aq.formats import Format
from ..aq.step_times import StepTimes
from ..errors import InputError
from ..sensitivity.fitting import load_predictor
from ..sensitivity.predictor import Predictor
from ..sensitivity.prober import Measurement, Prober
from ..sensitivity.probes import read_probes
from ..sensitivity.run import Run
from ..storage import write_json
from .budgets import parse_size
from .engine import FoundPlan
from .find import FRONT_BITS, find_front, find_plan
from .verify import Verification

STEP_IMAGES = 64  # as `bench model` samples at once


def parse_pins(texts: Sequence[str]) -> dict[str, Format]:
    """'GLOB=FORMAT' texts as a mapping."""
    pins = {}
    for text in texts:
        glob, equals, format = text.rpartition("=")
        if not equals or not glob:
            raise InputError(f"--pin {text!r}: use GLOB=FORMAT, such as '*.to_q=2x8g8'")
        pins[glob] = Format.parse(format)
    return pins


def other_pipeline_bytes(run: Run) -> int:
    """Bytes of everything in the subject's pipeline folder but the denoiser's weights."""
    if run.subject.folder is None or not run.subject.component:
        raise InputError(f"--pipeline-size: {run.subject.name} is not a pipeline's folder; use --size for the denoiser's file")
    weights = {path for path in (run.subject.folder / run.subject.component).glob("*.safetensors*")}
    return sum(path.stat().st_size for path in run.subject.folder.rglob("*") if path.is_file() and path not in weights)


def search_run(
    run: Run,
    *,
    bits: float | None = None,
    size: str | None = None,
    pipeline_size: str | None = None,
    ms_per_step: float | None = None,
    step_images: int = STEP_IMAGES,
    verify: int = 0,
    n_images: int | None = None,
    out: Path | None = None,
    **options: Any,
) -> FoundPlan:
    """Find a plan for the budgets given and save it to `out` (plans/BITS.json in the run by default).

    Args:
        bits: total bits per weight; size, pipeline_size: text such as "2MB", "2MiB" or a number of bytes.
        ms_per_step: milliseconds of a sampling step of `step_images` images at once, on this machine with its present number of threads.
        verify, n_images: samplings at most, and images in each (the run's own number by default).
        options: passed to find_plan.
    """
    limits = [parse_size(size)] if size else []
    if pipeline_size:
        limits.append(parse_size(pipeline_size) - other_pipeline_bytes(run))
    predictor, times = load_predictor(run), None
    if ms_per_step is not None:
        times = StepTimes.of_run(run.folder, run.subject, step_images, **run.settings.sampling)
    found = find_plan(
        run.subject,
        run.menus,
        predictor,
        bits=bits,
        ms_per_step=ms_per_step,
        times=times,
        size_bytes=min(limits) if limits else None,
        verification=verification(run, predictor, verify, n_images),
        encoding=run.store.identity,
        **options,
    )
    path = out or run.folder / "plans" / f"{found.plan.bits_per_weight:.3f}.json"
    found.plan.save(path)
    return found


def search_front(
    run: Run, *, bits: Sequence[float] = FRONT_BITS, verify: int = 0, n_images: int | None = None, **options: Any
) -> list[FoundPlan]:
    """The whole front, kept in plans/front.json of the run. Arguments as in `search_run`."""
    predictor = load_predictor(run)
    found = find_front(
        run.subject,
        run.menus,
        predictor,
        bits=bits,
        verification=verification(run, predictor, verify, n_images),
        encoding=run.store.identity,
        **options,
    )
    write_json(run.folder / "plans" / "front.json", "front", {"plans": [plan.to_json() for plan in found]})
    return found


def verification(run: Run, predictor: Predictor, n: int, n_images: int | None) -> Verification | None:
    """Measurements on the run's own number of images, unless told otherwise; the predictor learns from them beside the run's probes."""
    if n == 0:
        return None

    def refit(measured: Sequence[Measurement]) -> Predictor:
        return predictor.taught(
            read_probes(run, predictor.metric, others=[measurement.record for measurement in measured]), run.settings.seed
        )

    return Verification(n, Prober(run), refit, n_images or run.settings.n_images, run.settings.steps)
