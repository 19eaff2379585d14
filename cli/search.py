"""sedaq search --run DIR (--front | any of --bits B, --size S, --pipeline-size S, --ms-per-step T)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options


@click.command(help="Choose a format for every layer within a budget. What is found is never above it.")
@options.run_folder
@click.option("--front", is_flag=True, help="Plans from 1.5 to 4 bits at once.")
@click.option("--bits", type=float, default=None, help="Total bits per weight, at most.")
@click.option("--size", default=None, metavar="SIZE", help="Bytes of the denoiser's file, at most: 2MB, 2MiB or a number.")
@click.option("--pipeline-size", default=None, metavar="SIZE", help="Bytes of the whole pipeline's folder, at most.")
@click.option(
    "--ms-per-step",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="Milliseconds of a sampling step on this machine, at most, as foretold.",
)
@click.option("--step-images", type=click.IntRange(1), default=64, show_default=True, help="Images at once that --ms-per-step is for.")
@click.option("--pin", multiple=True, metavar="GLOB=FORMAT", help="Give layers this format; may be repeated.")
@click.option("--keep", multiple=True, metavar="GLOB", help="Leave layers as they are; may be repeated.")
@click.option("--tie", multiple=True, metavar="GLOB", help="Layers that must share a rate; may be repeated.")
@click.option("--min-rate", type=float, default=None, help="No layer below this rate.")
@click.option("--max-rate", type=float, default=None, help="No layer above this rate.")
@click.option("--solver", default="auto", show_default=True, help="exact, optuna or auto.")
@click.option("--trials", type=click.IntRange(0), default=200, show_default=True, help="Of Optuna, for each budget.")
@click.option(
    "--risk", type=click.FloatRange(0), default=1.0, show_default=True, help="Standard deviations that predictions are raised by."
)
@click.option("--storage", default=None, metavar="FILE|URL", help="Keep a copy of Optuna's studies there: a journal file or a database.")
@click.option(
    "--verify",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Samplings at most: uniform and plans that may be the best; they teach the predictor.",
)
@click.option("--images", type=click.IntRange(8), default=None, help="Images of each of them; as many as a probe by default.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share these samplings.")
@options.activations
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Plan file to write.")
@options.together(options.seed, options.device, options.as_json)
def command(
    run_folder: Path,
    front: bool,
    bits: float | None,
    size: str | None,
    pipeline_size: str | None,
    ms_per_step: float | None,
    step_images: int,
    pin: tuple[str, ...],
    keep: tuple[str, ...],
    tie: tuple[str, ...],
    min_rate: float | None,
    max_rate: float | None,
    solver: str,
    trials: int,
    risk: float,
    storage: str | None,
    verify: int,
    images: int | None,
    workers: int,
    activations: int | None,
    activation_schemes: str | None,
    out: Path | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    from ..aq.activations.choice import described
    from ..progress import shown
    from ..reports.summaries import front_table, show
    from ..search.verb import parse_pins, search_front, search_run
    from ..sensitivity.run import Run

    if front and any(given is not None for given in (bits, size, pipeline_size, ms_per_step, out)):
        raise click.UsageError("--front covers all budgets; leave out --bits, --size, --pipeline-size, --ms-per-step and --out.")
    settings: dict[str, Any] = {
        "pins": parse_pins(pin),
        "keep": keep,
        "ties": tie,
        "min_rate": min_rate,
        "max_rate": max_rate,
        "solver": solver,
        "n_trials": trials,
        "risk": risk,
        "storage": storage,
        "verify": verify,
        "n_images": images,
        "executor": options.executor(workers),
        "activations": activations,
        "activation_schemes": options.schemes(activations, activation_schemes),
        "seed": seed,
    }
    run = Run.open(run_folder, device=device)
    with shown():
        if front:
            found = search_front(run, **settings)
        else:
            limits: dict[str, Any] = {"bits": bits, "size": size, "pipeline_size": pipeline_size, "ms_per_step": ms_per_step}
            found = [search_run(run, **limits, step_images=step_images, out=out, **settings)]
    if as_json:
        rows = [plan.to_json() for plan in found]
        options.print_json(rows if front else rows[0])
        return
    show(front_table(found))
    if activations is not None:
        click.echo(described(found[0].plan.activations, len(found[0].plan.formats)))
    for note in found[0].plan.provenance["notes"] if not front else ():
        click.echo(note)
