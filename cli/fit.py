"""sedaq fit --run DIR"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command(help="Fit the predictor to a run's probes, cross-validate it and explain it; writes sensitivity.csv.")
@options.run_folder
@options.run_subject
@click.option("--metric", default="fid", show_default=True, help="What to predict: any metric that the probes have.")
@options.together(options.goal, options.prior, options.as_json, options.device)
def command(run_folder: Path, run_subject: str | None, metric: str, goal: str, prior: Path | None, as_json: bool, device: str) -> None:
    from ..api import Run
    from ..progress import shown
    from ..reports.numbers import sources_line
    from ..reports.summaries import fit_table, show

    with shown():
        fitted = Run(run_folder, model=run_subject, prior=prior, device=device).fit(metric, tuned=goal == "tuned")
    for note in fitted.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        options.print_json(fitted.to_dict())
    else:
        show(fit_table(fitted.to_dict()))
        if sources := fitted.summary.get("sources"):
            click.echo(sources_line(sources))
        for finding in fitted.findings:
            click.echo(f"- {finding}")
        click.echo(
            f"next: sedaq search --run {options.named(run_folder)} --bits 2 --out plan.json{' --for tuned' if goal == 'tuned' else ''}"
        )
