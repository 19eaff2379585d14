"""sedaq apply SUBJECT plan.json --out DIR"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

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
@options.together(options.exclude, options.guidance, options.prompts, options.device)
def command(
    subject: str,
    plan: Path,
    out: Path,
    run_folder: Path | None,
    effort: str | None,
    tune_steps: int,
    exclude: tuple[str, ...],
    guidance: float | None,
    prompts: str | None,
    device: str,
) -> None:
    from ..aq.apply import apply
    from ..aq.plan import Plan
    from ..progress import shown
    from ..sensitivity.run import store_for_plan

    loaded_plan = Plan.load(plan)
    with tempfile.TemporaryDirectory() as scratch, shown():
        chosen, store = store_for_plan(
            loaded_plan,
            subject,
            run_folder,
            Path(scratch),
            effort=effort,
            exclude=exclude,
            guidance=guidance,
            prompts=prompts,
            device=device,
        )
        sampling: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
        tuned = apply(store.subject, chosen, store, out, tune_steps=tune_steps, **sampling)
    click.echo(f"{out}: {chosen.size_bytes:,} bytes, {chosen.bits_per_weight:.3f} bits a weight")
    if tuned.losses:
        click.echo(f"held-out loss {tuned.losses[0][1]:.5f} before tuning, {min(loss for _, loss in tuned.losses):.5f} after")
