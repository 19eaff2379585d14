"""sedaq demo: every verb, in order, on a shipped model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import click

from . import options

SUBJECT, BITS = "mnist-dit", 2.0
N_CONFIGS, PROBE_IMAGES, TUNE_STEPS, N_IMAGES = 16, 256, 200, 1000  # with 16 probes of 256 images plans are ordered as well as noise allows
MARK_FILE = "demo.json"  # by which a demo's folder is known
FRONT_BITS, FRONT_IMAGES = (1.5, 2.0, 3.0, 4.0), 256


@click.command(help=f"Fit {SUBJECT} into {BITS:g} bits a weight: probe, fit, search, apply, evaluate, report. Run again, it resumes.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True, help="Folder for everything.")
@click.option("--fresh", is_flag=True, help="Start over.")
@options.device
def command(out: Path, fresh: bool, device: str) -> None:
    from ..api import Budget, Run
    from ..errors import InputError
    from ..progress import shown
    from ..reports.summaries import show
    from ..reports.tables import evaluation_table
    from ..storage import write_json

    if fresh and out.exists():
        if any(out.iterdir()) and not ((out / MARK_FILE).exists() or _begun_with(out)):
            raise InputError(f"--fresh --out {out}: is not a demo's folder, so it is not deleted; choose another")
        shutil.rmtree(out)
    elif (images := _begun_with(out)) not in (None, PROBE_IMAGES):
        raise InputError(
            f"--out {out}: holds a demo of an earlier version, with probes of {images} images; start over with --fresh, or choose another folder"
        )
    with shown():
        run = Run(out, SUBJECT, device=device, images=PROBE_IMAGES).probe(N_CONFIGS)
        write_json(out / MARK_FILE, "demo", {"subject": SUBJECT, "bits": BITS})
        run.fit()
        run.front(FRONT_BITS, verify=2, images=FRONT_IMAGES)
        found = run.search(Budget(bits=BITS), verify=5, images=FRONT_IMAGES, out=out / "plans" / "plan.json")
        found.uniform.save(out / "plans" / "uniform.json")
        rows = [
            run.evaluate("full precision", None, images=N_IMAGES),
            run.evaluate("uniform", found.uniform, images=N_IMAGES),
            run.evaluate("searched", found.plan, images=N_IMAGES),
            run.evaluate("searched + tuned", found.plan, tune_steps=TUNE_STEPS, images=N_IMAGES),
        ]
        page = run.report()
    show(evaluation_table(rows))
    click.echo(f"{page}")


def _begun_with(out: Path) -> int | None:
    """Images of a probe in a demo that was stopped before its first stage ended, or is of an earlier version; None where the settings are not a demo's."""
    from ..errors import InputError
    from ..models.sampling import SamplingConfig
    from ..sensitivity.settings import Settings
    from ..storage import read_json

    try:
        run = read_json(out / "run.json", "run")
    except InputError:
        return None
    default = Settings(sampling=SamplingConfig(steps=10), calibration_images=64)
    known = [
        replace(default, n_images=n_images, calibration_steps=steps).to_dict()
        for n_images in (PROBE_IMAGES, default.n_images)
        for steps in (20, None)
    ]
    is_demo = run["subject"]["argument"] == SUBJECT and run["settings"] in known
    return int(run["settings"]["n_images"]) if is_demo else None
