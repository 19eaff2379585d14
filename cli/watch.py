"""sedaq watch --run DIR"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from . import options


@click.command(help="Show which commands are at work in a run, how far they are and what they leave; until none is at work, or Ctrl-C.")
@options.run_folder
@click.option("--every", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between looks.")
@options.as_json
def command(run_folder: Path, every: float, as_json: bool) -> None:
    from rich.live import Live

    from ..reports.summaries import console, run_state, show
    from ..reports.watch import state_of

    state = state_of(run_folder)
    if as_json:
        options.print_json(state.to_dict())
        return
    if not (state.is_at_work and sys.stdout.isatty()):
        show(run_state(state))
        return
    with Live(run_state(state), console=console(), auto_refresh=False) as live:
        while state.is_at_work:
            time.sleep(every)
            state = state_of(run_folder)
            live.update(run_state(state), refresh=True)
