"""sedaq probe SUBJECT --run DIR"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command(help=f"Encode every layer's menu and measure random plans. Run again, it goes on.\n\n{options.SUBJECT_HELP}")
@click.argument("subject")
@options.run_folder
@click.option("--configs", type=click.IntRange(1), default=64, show_default=True, help="Plans to measure at most.")
@click.option(
    "--design",
    default="stratified",
    show_default=True,
    help="Which plans: auto (asks for those that teach most, and stops when the ranking of layers is stable), stratified (random), or one "
    "layer, role or block at a time (layer, role, block), the rest as it is. A run takes several.",
)
@click.option("--metric", default="fid", show_default=True, help="What --design auto goes by; all metrics are recorded.")
@click.option("--images", type=click.IntRange(8), default=512, show_default=True, help="Images a plan.")
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Sampling steps.")
@options.seed
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the work.")
@options.together(options.reference, options.extractor, options.guidance, options.prompts, options.batch_size)
@options.together(options.exclude, options.device)
@click.option("--effort", default="fast", show_default=True, help="Of the encoder: draft, fast, full or seconds a layer.")
@click.option("--weighting", default="uniform", show_default=True, help="Of calibration's timesteps: uniform, balanced, early, late.")
@click.option("--memory", default=None, metavar="SIZE", help="Of one calibration pass, such as 4GB; half of what is free by default.")
def command(
    subject: str,
    run_folder: Path,
    configs: int,
    design: str,
    metric: str,
    images: int,
    steps: int,
    seed: int,
    workers: int,
    reference: str | None,
    extractor: str | None,
    guidance: float | None,
    prompts: str | None,
    batch_size: int | None,
    exclude: tuple[str, ...],
    device: str,
    effort: str,
    weighting: str,
    memory: str | None,
) -> None:
    from ..models.sampling import SamplingConfig
    from ..progress import shown
    from ..search.budgets import parse_size
    from ..sensitivity.probing.designs import AUTO
    from ..sensitivity.probing.probe import probe
    from ..sensitivity.run import Settings
    from ..storage import read_json

    # Later verbs may be called from another folder.
    reference, prompts = (str(Path(path).resolve()) if path else None for path in (reference, prompts))
    settings = Settings(
        seed=seed,
        n_images=images,
        sampling=SamplingConfig(steps=steps, guidance=guidance, prompts=prompts, batch_size=batch_size),
        extractor=extractor,
        reference=reference,
        exclude=exclude,
        effort=effort,
        weighting=weighting,
    )
    with shown():
        memory_bytes = parse_size(memory) if memory else None
        run = probe(
            subject,
            run_folder,
            n_configs=configs,
            design=design,
            metric=metric,
            settings=settings,
            executor=options.executor(workers),
            device=device,
            memory_bytes=memory_bytes,
        )
    if design == AUTO:
        outcome = read_json(run.folder / "probing.json", "probing")
        ranking = ", ".join(f"{value:.3f}" for value in outcome["rankings"][-2:])
        ended = "--configs is reached" if outcome["n_plans"] >= configs else "the model has no more plans"
        why = "the ranking of layers is stable" if outcome["stable"] else f"{ended}, the ranking of layers is not stable yet"
        click.echo(f"{outcome['n_plans']} plans: {why} (rank correlation of the last rounds: {ranking or 'none'})")
    click.echo(f"probes are in {run_folder}; next: sedaq fit --run {run_folder}")
