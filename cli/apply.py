"""sedaq apply SUBJECT plan.json --out DIR"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click

from ..errors import InputError
from . import options


@click.command(help=f"Write the quantized model of a saved plan as a diffusers folder.\n\n{options.SUBJECT_HELP}")
@click.argument("subject")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--run", "run_folder", type=click.Path(path_type=Path), default=None, help="Run whose encodings to use; made anew without it."
)
@click.option(
    "--effort",
    default=None,
    metavar="fast|full|SECONDS",
    help="Encode with another effort than the plan's; its measured quality is dropped.",
)
@click.option(
    "--tune-steps", type=click.IntRange(0), default=0, show_default=True, help="Steps of PV-tuning against the full-precision model."
)
@click.option(
    "--tune-minutes",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="As many steps as fit into this time, measured at the beginning; a killed tuning goes on when begun again.",
)
@click.option(
    "--tune-trajectories",
    type=int,
    default=None,
    metavar="IMAGES",
    help="How many images the full-precision model samples to learn from; 1024 by default.",
)
@click.option(
    "--tune-buffer",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder that keeps the trajectories for other tunings of the same model; recorded there if it is empty.",
)
@click.option(
    "--tune-images",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder or .npz of your own images to learn from beside the model's trajectories; none are needed.",
)
@options.activations
@options.together(options.exclude, options.guidance, options.prompts, options.batch_size, options.device)
def command(
    subject: str,
    plan: Path,
    out: Path,
    run_folder: Path | None,
    effort: str | None,
    tune_steps: int,
    tune_minutes: float | None,
    tune_trajectories: int | None,
    tune_buffer: Path | None,
    tune_images: Path | None,
    activations: int | None,
    activation_schemes: str | None,
    exclude: tuple[str, ...],
    guidance: float | None,
    prompts: str | None,
    batch_size: int | None,
    device: str,
) -> None:
    from ..aq.activations.choice import choose, described
    from ..aq.export.apply import apply, check_writable
    from ..aq.plans.plan import Plan
    from ..aq.tuning.settings import TuneConfig
    from ..aq.tuning.tune import SPOILT
    from ..models.sampling import SamplingConfig
    from ..progress import shown
    from ..sensitivity.run import store_for_plan

    schemes = options.schemes(activations, activation_schemes)
    if tune_steps and tune_minutes is not None:
        raise InputError("--tune-steps and --tune-minutes: give one of them")
    of_tuning = {"--tune-trajectories": tune_trajectories, "--tune-buffer": tune_buffer, "--tune-images": tune_images}
    given_of_tuning = [option for option, value in of_tuning.items() if value is not None]
    if not tune_steps and tune_minutes is None and given_of_tuning:
        raise InputError(f"{' and '.join(given_of_tuning)}: for tuning alone; give --tune-steps or --tune-minutes, too")
    n_trajectories = TuneConfig.n_images if tune_trajectories is None else tune_trajectories
    tune = TuneConfig(steps=tune_steps, minutes=tune_minutes, n_images=n_trajectories)
    loaded_plan = Plan.load(plan)
    with tempfile.TemporaryDirectory() as scratch, shown():
        chosen, store = store_for_plan(
            loaded_plan,
            subject,
            run_folder,
            Path(scratch),
            effort=effort,
            exclude=exclude,
            sampling=SamplingConfig(prompts=prompts, batch_size=batch_size),
            device=device,
        )
        sampling = store.sampling if guidance is None else replace(store.sampling, guidance=guidance)
        check_writable(out)
        if activations is not None:
            kept = store.folder / "activations"
            rounded = choose(store.subject, activations, schemes=schemes, keep_in=kept, sampling=sampling, seed=store.seed)
            chosen = chosen.with_activations(store.subject, rounded)
        tuned = apply(
            store.subject,
            chosen,
            store,
            out,
            tune=tune,
            tune_images=tune_images,
            buffer_folder=tune_buffer,
            sampling=sampling,
        )
    click.echo(f"{out}: {chosen.size_bytes:,} bytes, {chosen.bits_per_weight:.3f} bits a weight")
    if chosen.activations:
        click.echo(described(chosen.activations, len(chosen.formats)))
    if tuned.losses:
        step, loss = tuned.best
        click.echo(f"held-out loss {tuned.losses[0][1]:.5f} before tuning, {loss:.5f} after {step} of {tuned.losses[-1][0]} steps")
        if tuned.lost > SPOILT:
            click.echo(
                f"{tuned.lost:.0%} of what the denoiser says is still lost, which spoils images; tune longer, or search a plan of more bits"
            )
    limit = chosen.budget.get("size_bytes")
    if limit is not None and chosen.size_bytes > limit:
        click.echo(
            f"that is {chosen.size_bytes - limit:,.0f} bytes above the plan's budget: ranges of rounded inputs; give --activations to `sedaq search`"
        )
    if tuned.ending:
        click.echo(f"tuning: {tuned.ending}")
