"""sedaq search --run DIR (--front | any of --bits B, --size S, --pipeline-size S, --ms-per-step T); sedaq search SUBJECT --uniform --bits B"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..search.config import Budget, SearchConfig
from . import options
from .config import config_options


@click.command(
    help="Choose a format for every layer within a budget. What is found is never above it. SUBJECT is for --uniform alone, which needs no run."
)
@click.argument("subject", required=False)
@click.option("--run", "run_folder", type=options.RunFolder(), default=None, help=options.RUN_HELP)
@options.run_subject
@click.option("--uniform", is_flag=True, help="The uniform plan of a SUBJECT that was never probed, at once.")
@click.option("--front", is_flag=True, help="Plans from 1.5 to 4 bits at once.")
@config_options(Budget, "budget")
@config_options(SearchConfig, "config", without=("tuned",))
@options.goal
@options.executor_options
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Plan file to write.")
@options.together(options.prior, options.components, options.device, options.as_json)
def command(
    subject: str | None,
    run_folder: Path | None,
    run_subject: str | None,
    uniform: bool,
    front: bool,
    budget: dict[str, Any],
    config: dict[str, Any],
    goal: str,
    executor: str,
    out: Path | None,
    prior: Path | None,
    components: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    from ..api import Run
    from ..aq.activations.choice import described
    from ..aq.plans.plan import share_of_file
    from ..progress import shown
    from ..reports.summaries import front_table, show

    if uniform:
        if subject is None or run_folder or run_subject or front or prior or goal == "tuned":
            raise click.UsageError("--uniform is for a SUBJECT alone, without --run, --front, --prior and --for.")
        return _uniform(subject, Budget(**budget), config, out or Path("plan.json"), components, device, as_json)
    if subject is not None or run_folder is None or components:
        raise click.UsageError("give the --run that was probed; a SUBJECT and --components are for --uniform alone.")
    if goal == "tuned":
        config["tuned"] = True
    if front and (budget or out):
        raise click.UsageError("--front covers all budgets; leave out --bits, --size, --pipeline-size, --ms-per-step and --out.")
    limits = None if front else Budget(**budget)
    SearchConfig(**config)  # what is wrong is said before the model is loaded
    run = Run(run_folder, model=run_subject, prior=prior, executor=executor, device=device)
    with shown():
        found = run.front(**config) if limits is None else [run.search(limits, out=out, **config)]
    if as_json:
        rows = [plan.to_dict() for plan in found]
        options.print_json(rows if front else rows[0])
        return
    show(front_table(found))
    if "activations" in config:
        click.echo(described(found[0].plan.activations, len(found[0].plan.formats)))
    if not front:
        click.echo(share_of_file(run.subject, found[0].plan))
    notes = [plan.plan.provenance["notes"] for plan in found]
    for note in notes[0] if notes else ():
        if all(note in others for others in notes):  # of a front, what is said of every plan
            click.echo(note)


def _uniform(
    subject: str, budget: Budget, config: dict[str, Any], out: Path, components: tuple[str, ...], device: str, as_json: bool
) -> None:
    from ..aq.plans.plan import PLAN_MARK
    from ..outputs import check_out
    from ..search.unmeasured import uniform_plan

    check_out("out", out, PLAN_MARK)
    plan = uniform_plan(subject, budget, SearchConfig(**config), components=components, device=device)
    plan.save(out)
    if as_json:
        return options.print_json(plan.to_json())
    click.echo(f"{out}: {plan.size_bytes:,} bytes, {plan.bits_per_weight:.3f} bits a weight")
    for note in plan.provenance["notes"]:
        click.echo(note)
