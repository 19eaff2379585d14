"""sedaq demo: every verb, in order, on a shipped model."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from . import options

SUBJECT, BITS = "mnist-dit", 2.0
N_CONFIGS, TUNE_STEPS, N_IMAGES = 36, 240, 1000
FRONT_BITS = (1.5, 2.0, 2.5, 3.0, 4.0)


@click.command(help=f"Fit {SUBJECT} into {BITS:g} bits a weight: probe, fit, search, apply, evaluate, report. Run again, it resumes.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True, help="Folder for everything.")
@click.option("--fresh", is_flag=True, help="Start over.")
@options.device
def command(out: Path, fresh: bool, device: str) -> None:
    from ..errors import InputError
    from ..progress import shown
    from ..reports.run_report import write_run_report
    from ..reports.summaries import show
    from ..reports.tables import evaluation_table
    from ..search.verb import search_front, search_run
    from ..sensitivity.evaluation import evaluate_plan
    from ..sensitivity.predictor.fitting import fit
    from ..sensitivity.probing.probe import probe

    if fresh and out.exists():
        if not (out / "run.json").exists() and any(out.iterdir()):
            raise InputError(f"--fresh --out {out}: is not a demo's folder, so it is not deleted; choose another")
        shutil.rmtree(out)
    with shown():
        run = probe(SUBJECT, out, n_configs=N_CONFIGS, device=device)
        fit(run)
        search_front(run, bits=FRONT_BITS, verify=2)
        found = search_run(run, bits=BITS, verify=8, out=out / "plans" / "plan.json")
        found.uniform.save(out / "plans" / "uniform.json")
        rows = [
            evaluate_plan(run, "full precision", None, n_images=N_IMAGES),
            evaluate_plan(run, "uniform", found.uniform, n_images=N_IMAGES),
            evaluate_plan(run, "searched", found.plan, n_images=N_IMAGES),
            evaluate_plan(run, "searched + tuned", found.plan, tune_steps=TUNE_STEPS, n_images=N_IMAGES),
        ]
        page = write_run_report(run)
    show(evaluation_table(rows))
    click.echo(f"{page}")
