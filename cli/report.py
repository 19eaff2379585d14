"""sedaq report --run DIR"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command(help="Write report.html, its figures and their numbers.")
@options.run_folder
@options.run_subject
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Page to write; report.html in the run by default.")
@click.option(
    "--plan", type=click.Path(path_type=Path), default=None, help="Plan that the page is about; plans/plan.json in the run by default."
)
@options.device
def command(run_folder: Path, run_subject: str | None, out: Path | None, plan: Path | None, device: str) -> None:
    from ..api import Run
    from ..progress import shown

    with shown():
        page = Run(run_folder, model=run_subject, device=device).report(out, plan=plan)
    click.echo(f"{page}")
