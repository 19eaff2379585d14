"""sedaq evaluate SUBJECT|DIR"""

from __future__ import annotations

import click

from . import options


@click.command(help=f"Measure the images of a model, or of a folder that `sedaq apply` wrote.\n\n{options.SUBJECT_HELP}")
@click.argument("subject")
@click.option("--against", default=None, metavar="SUBJECT", help="Full-precision model, for paired measures on the same noise.")
@click.option("--images", type=click.IntRange(8), default=2000, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=None, help="Sampling steps; the subject's own by default.")
@options.seed
@options.together(options.reference, options.extractor, options.guidance, options.prompts, options.batch_size, options.device)
@options.as_json
def command(
    subject: str,
    against: str | None,
    images: int,
    steps: int | None,
    seed: int,
    reference: str | None,
    extractor: str | None,
    guidance: float | None,
    prompts: str | None,
    batch_size: int | None,
    device: str,
    as_json: bool,
) -> None:
    from ..models.sampling import SamplingConfig
    from ..progress import shown
    from ..reports.summaries import metrics_table, show
    from ..sensitivity.evaluation import evaluate

    with shown():
        result = evaluate(
            subject,
            against=against,
            n_images=images,
            sampling=SamplingConfig(steps=steps, guidance=guidance, prompts=prompts, batch_size=batch_size),
            seed=seed,
            extractor=extractor,
            reference=reference,
            device=device,
        )
    if as_json:
        options.print_json(result)
    else:
        show(metrics_table(result))
