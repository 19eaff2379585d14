"""sedaq probe SUBJECT --run DIR"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..models.sampling import SamplingConfig
from ..sensitivity.settings import Settings
from . import options
from .config import config_options

if TYPE_CHECKING:
    from ..sensitivity.probing.forecast import Forecast


@click.command(help=f"Encode every layer's menu and measure random plans. Run again, it goes on.\n\n{options.SUBJECT_HELP}")
@click.argument("subject")
@options.run_folder
@click.option("--configs", type=int, default=64, show_default=True, help="Plans to measure at most.")
@click.option(
    "--design",
    default="stratified",
    show_default=True,
    help="Which plans: auto (asks for those that teach most, and stops when the ranking of layers is stable), stratified (random), or one "
    "layer, role or block at a time (layer, role, block), the rest as it is. A run takes several.",
)
@click.option(
    "--tuned-steps",
    type=int,
    default=None,
    help="Tune every plan for so many steps before it is measured, for `fit --for tuned` and `search --for tuned`.",
)
@click.option("--metric", default="fid", show_default=True, help="What --design auto goes by; all metrics are recorded.")
@options.executor_options
@config_options(Settings, "settings", without=("sampling", "old_batch_size"), n_images="images")
@config_options(SamplingConfig, "sampling")
@click.option("--memory", default=None, metavar="SIZE", help="Of one calibration pass, such as 4GB; half of what is free by default.")
@click.option("--max-hours", type=float, default=None, help="Measure only as many plans as there is time for.")
@click.option(
    "--dry-run", is_flag=True, help="Time one sampling and one encoding of each shape, say what probing will take, and write nothing."
)
@options.together(options.prior, options.device, options.as_json)
def command(
    subject: str,
    run_folder: Path,
    configs: int,
    design: str,
    metric: str,
    tuned_steps: int | None,
    executor: str,
    settings: dict[str, Any],
    sampling: dict[str, Any],
    memory: str | None,
    max_hours: float | None,
    dry_run: bool,
    prior: Path | None,
    device: str,
    as_json: bool,
) -> None:
    from ..api import Run
    from ..progress import shown
    from ..sensitivity.probing.designs import AUTO
    from ..storage import read_json

    for name in ("prompts", "negative_prompts"):  # later verbs may be called from another folder
        if name in sampling:
            sampling[name] = str(Path(sampling[name]).resolve())
    settings["images"] = settings.pop("n_images", None)
    if as_json and not dry_run:
        raise click.UsageError("--json is for --dry-run alone.")
    if tuned_steps is not None and (dry_run or max_hours is not None):
        raise click.UsageError("--tuned-steps: tuning is not forecast; leave out --dry-run and --max-hours.")
    with shown():
        run = Run(
            run_folder,
            subject,
            sampling=SamplingConfig(**sampling),
            prior=prior,
            executor=executor,
            device=device,
            **settings,
        )
        if dry_run:
            _print_forecast(run.forecast(configs, memory=memory), as_json)
            return
        run.probe(configs, design, metric=metric, tuned_steps=tuned_steps, memory=memory, max_hours=max_hours)
    if design == AUTO:
        outcome = read_json(run.folder / "probing.json", "probing")
        ranking = ", ".join(f"{value:.3f}" for value in outcome["rankings"][-2:])
        ended = "--configs is reached" if outcome["n_plans"] >= configs else "the model has no more plans"
        why = "the ranking of layers is stable" if outcome["stable"] else f"{ended}, the ranking of layers is not stable yet"
        click.echo(f"{outcome['n_plans']} plans: {why} (rank correlation of the last rounds: {ranking or 'none'})")
    click.echo(
        f"probes are in {options.named(run_folder)}; next: sedaq fit --run {options.named(run_folder)}{' --for tuned' if tuned_steps else ''}"
    )


def _print_forecast(forecast: Forecast, as_json: bool) -> None:
    from ..reports.summaries import forecast_table, show

    content = forecast.to_dict()
    for stage in content["stages"]:
        stage["halved_by"] = [f"--{name.replace('_', '-')}" for name in stage["halved_by"]]
    if as_json:
        options.print_json(content)
    else:
        show(forecast_table(content))
