"""sedaq inspect SUBJECT [--plan FILE]"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command(help=f"Layers, roles, shapes, menu of formats, exact bytes.\n\n{options.SUBJECT_HELP}")
@click.argument("subject")
@click.option("--plan", type=click.Path(path_type=Path), default=None, help="Show what this plan gives each layer.")
@options.exclude
@options.as_json
def command(subject: str, plan: Path | None, exclude: tuple[str, ...], as_json: bool) -> None:
    from ..aq.inspection import inspect
    from ..aq.plan import Plan
    from ..models.loading import load
    from ..reports.summaries import show
    from ..reports.tables import inspect_table

    loaded = load(subject, exclude=exclude)
    result = inspect(loaded, Plan.load(plan) if plan else None)
    if as_json:
        options.print_json(result)
    else:
        show(inspect_table(result))
