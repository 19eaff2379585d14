"""sedaq doctor DIR"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command(
    help="Read every file of a run's folder, or of a model that `sedaq apply` wrote, and say what is wrong. Nothing is loaded or run."
)
@click.argument("folder", type=options.RunFolder())
@click.option("--repair", is_flag=True, help="Delete files of a run that are damaged and can be made again; the next command makes them.")
@options.as_json
@click.pass_context
def command(context: click.Context, folder: Path, repair: bool, as_json: bool) -> None:
    from ..reports.doctor import examine
    from ..reports.summaries import diagnosis_table, show

    found = examine(folder, repair=repair)
    if as_json:
        rows = [finding.to_dict() for finding in found.findings]
        options.print_json({"whole": found.n_whole, "findings": rows, "next": list(found.next_steps)})
    else:
        click.echo(f"{folder}: {found.n_whole} files are whole")
        if found.findings:
            show(diagnosis_table(found.findings))
        for step in found.next_steps:
            click.echo(f"next: {step}" if step.startswith("`") else step)
    if not found.is_whole:
        context.exit(1)
