"""sedaq learn RUN..."""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command(
    help="Add runs to a corpus of one's own, and learn from it what makes layers sensitive. Runs that are probed later start from that. RUN is a folder or a URL."
)
@click.argument("runs", type=options.RunFolder(), nargs=-1, required=True)
@click.option("--corpus", type=click.Path(path_type=Path), default=None, help="Parquet file to add to; in the user's cache by default.")
@click.option("--metric", default="fid", show_default=True, help="Whose effects are added: any metric that the runs have.")
@click.option(
    "--trials",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of Optuna, which chooses how trees are grown; 0 keeps the settings.",
)
@options.together(options.seed, options.as_json)
def command(runs: tuple[Path, ...], corpus: Path | None, metric: str, trials: int, seed: int, as_json: bool) -> None:
    from ..progress import shown
    from ..reports.prior_figures import write_figures
    from ..reports.summaries import quality_table, show
    from ..sensitivity.prior.learn import learn, whole_corpus
    from ..sensitivity.prior.model import LearntPrior

    with shown():
        found = learn(runs, corpus, metric=metric, trials=trials, seed=seed)
    write_figures(LearntPrior.load(found.prior), whole_corpus(found.corpus), found.corpus)
    if as_json:
        options.print_json(found.to_dict())
        return
    show(quality_table(found.to_dict()))
    click.echo(f"{found.corpus}: {found.n_rows:,} rows of {len(found.models)} models; the prior is {found.prior}")
