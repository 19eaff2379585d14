"""sedaq evaluate SUBJECT|DIR"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..models.sampling import SamplingConfig
from . import options
from .config import config_options


@click.command(help=f"Measure the images of a model, or of a folder that `sedaq apply` wrote.\n\n{options.SUBJECT_HELP}")
@click.argument("subject")
@click.option("--against", default=None, metavar="SUBJECT", help="Full-precision model, for paired measures on the same noise.")
@click.option("--images", type=click.IntRange(8), default=2000, show_default=True, help="How many are sampled.")
@click.option("--keep-in", type=options.RunFolder(), default=None, metavar="RUN", help="Keep the result in a run too, for its report.")
@config_options(SamplingConfig, "sampling")
@options.seed
@click.option(
    "--weights", type=click.Path(), default=None, metavar="DIR", help="What `sedaq apply` wrote of a SUBJECT that is FILE.py:FUNCTION."
)
@options.together(options.reference, options.extractor, options.device)
@options.as_json
def command(
    subject: str,
    against: str | None,
    images: int,
    keep_in: Path | None,
    sampling: dict[str, Any],
    seed: int,
    reference: str | None,
    extractor: str | None,
    weights: str | None,
    device: str,
    as_json: bool,
) -> None:
    from ..api import Run, evaluate
    from ..progress import shown
    from ..reports.summaries import metrics_table, show

    run = None if keep_in is None else Run(keep_in)
    if run is not None:
        run.check_folder(weights or subject)
    with shown():
        result = evaluate(
            subject,
            against=against,
            images=images,
            sampling=SamplingConfig(**sampling),
            seed=seed,
            extractor=extractor,
            reference=reference,
            weights=weights,
            device=device,
        ).to_dict()
    if run is not None:
        run.keep(Path(weights or subject).name, result, weights or subject)
    if as_json:
        options.print_json(result)
    else:
        show(metrics_table(result))
