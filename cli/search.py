"""sedaq search --run DIR (--front | any of --bits B, --size S, --pipeline-size S, --ms-per-step T)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..search.config import Budget, SearchConfig
from . import options
from .config import config_options


@click.command(help="Choose a format for every layer within a budget. What is found is never above it.")
@options.run_folder
@click.option("--front", is_flag=True, help="Plans from 1.5 to 4 bits at once.")
@config_options(Budget, "budget")
@config_options(SearchConfig, "config")
@options.workers
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Plan file to write.")
@options.together(options.device, options.as_json)
def command(
    run_folder: Path,
    front: bool,
    budget: dict[str, Any],
    config: dict[str, Any],
    workers: int,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    from ..api import Run
    from ..aq.activations.choice import described
    from ..progress import shown
    from ..reports.summaries import front_table, show

    if front and (budget or out):
        raise click.UsageError("--front covers all budgets; leave out --bits, --size, --pipeline-size, --ms-per-step and --out.")
    limits = None if front else Budget(**budget)
    SearchConfig(**config)  # what is wrong is said before the model is loaded
    run = Run(run_folder, executor=options.executor(workers), device=device)
    with shown():
        found = run.front(**config) if limits is None else [run.search(limits, out=out, **config)]
    if as_json:
        rows = [plan.to_dict() for plan in found]
        options.print_json(rows if front else rows[0])
        return
    show(front_table(found))
    if "activations" in config:
        click.echo(described(found[0].plan.activations, len(found[0].plan.formats)))
    for note in found[0].plan.provenance["notes"] if not front else ():
        click.echo(note)
