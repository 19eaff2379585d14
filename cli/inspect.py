"""sedaq inspect SUBJECT [--plan FILE] [--run DIR]; sedaq inspect --model-config PATH"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..models.sampling import SamplingConfig
from . import options
from .config import config_options


@click.command(
    help="Layers, roles, shapes, menu of formats, exact bytes. Menus are a rule's until a run has measured them: then see them by --run. Codebooks that layers share count in full for each."
    f"\n\n{options.SUBJECT_HELP}"
)
@click.argument("subject", required=False)
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    default=None,
    help="Show what this plan gives each layer, and the operations of one image in one sampling step, which is sampled for that.",
)
@click.option("--run", "run_folder", type=options.RunFolder(), default=None, help="Show the menus that this run measured.")
@click.option(
    "--model-config",
    type=click.Path(path_type=Path),
    default=None,
    help="Instead of a SUBJECT: a denoiser's config.json, a pipeline's model_index.json, or the folder of one. No weights are read, and no memory is taken.",
)
@config_options(
    SamplingConfig, "sampling", only=("guidance", "height", "width", "n_frames", "max_tokens", "prompts", "input_images", "input_masks")
)
@options.together(options.exclude, options.components)
@options.as_json
def command(
    subject: str | None,
    plan: Path | None,
    run_folder: Path | None,
    model_config: Path | None,
    sampling: dict[str, Any],
    exclude: tuple[str, ...],
    components: tuple[str, ...],
    as_json: bool,
) -> None:
    from ..aq.export.inspection import inspect
    from ..aq.plans.menu import heuristic_menus
    from ..aq.plans.plan import Plan
    from ..aq.profiling.operations import tokens_of
    from ..progress import shown
    from ..reports.numbers import count, megabytes
    from ..reports.summaries import show
    from ..reports.tables import inspect_table, operations_table
    from ..sensitivity.run import Run

    given = SamplingConfig(**sampling)
    if (subject is None) == (model_config is None) or (model_config and (plan or run_folder)):
        raise click.UsageError("give a 'SUBJECT', or --model-config alone.")
    with shown():
        run = Run.open(run_folder, subject=subject) if run_folder else None
        planned = Plan.load(plan) if plan else None
        components = components or (planned.components if planned else ())
        loaded = run.subject if run else _loaded(subject, model_config, given, exclude, components)
        if planned:
            planned.validate(loaded)
        result = inspect(loaded, run.menus if run else heuristic_menus(loaded), planned, tokens_of(loaded, given) if planned else None)
    if as_json:
        options.print_json(result)
        return
    show(operations_table(result) if planned else inspect_table(result))
    for name, of in result["by_component"].items():
        click.echo(f"{name}: {count(of['n_layers'])} layers, {count(of['n_weights'])} weights, {megabytes(of['size_bytes'])}")
    for title, sizes in (("stays as it is", result["kept"]), ("other components", result["components"])):
        if sizes:
            click.echo(f"{title}: {', '.join(f'{name} {megabytes(size)}' for name, size in sizes.items())}")


def _loaded(
    subject: str | None, model_config: Path | None, sampling: SamplingConfig, exclude: tuple[str, ...], components: tuple[str, ...]
) -> Any:
    from ..models.loading import load
    from ..models.unloaded import architecture

    if model_config is None:
        return load(str(subject), prompts=sampling.prompt_lines, exclude=exclude, components=components)
    found = architecture(model_config, components)
    found.exclude += exclude
    return found
