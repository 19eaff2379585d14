"""sedaq inspect SUBJECT [--plan FILE] [--run DIR]"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command(
    help="Layers, roles, shapes, menu of formats, exact bytes. Menus are a rule's until a run has measured them: then see them by --run. Codebooks that layers share count in full for each."
    f"\n\n{options.SUBJECT_HELP}"
)
@click.argument("subject")
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    default=None,
    help="Show what this plan gives each layer, and the operations of one image in one sampling step, which is sampled for that.",
)
@click.option("--run", "run_folder", type=click.Path(path_type=Path), default=None, help="Show the menus that this run measured.")
@options.exclude
@options.as_json
def command(subject: str, plan: Path | None, run_folder: Path | None, exclude: tuple[str, ...], as_json: bool) -> None:
    from ..aq.export.inspection import inspect
    from ..aq.plans.menu import heuristic_menus
    from ..aq.plans.plan import Plan
    from ..aq.profiling.operations import tokens_of
    from ..models.loading import load
    from ..progress import shown
    from ..reports.summaries import show
    from ..reports.tables import inspect_table, operations_table
    from ..sensitivity.run import Run

    with shown():
        run = Run.open(run_folder, subject=subject) if run_folder else None
        loaded = run.subject if run else load(subject, exclude=exclude)
        planned = Plan.load(plan) if plan else None
        if planned:
            planned.validate(loaded)
        result = inspect(loaded, run.menus if run else heuristic_menus(loaded), planned, tokens_of(loaded) if planned else None)
    if as_json:
        options.print_json(result)
    else:
        show(operations_table(result) if planned else inspect_table(result))
