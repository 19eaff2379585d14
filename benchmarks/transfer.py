"""What a prior that other models taught is worth on the next one:  python benchmarks/transfer.py corpus | leave-one-out | exponent | findings | time | test

Of the runs that benchmarks/corpus.py made, those that are complete. Test models enter `test` alone, and none of the others.

    corpus          gathers the rows, chooses how trees are grown (Optuna; the study is kept), and writes what sedaq ships: sensitivity/prior/corpus.parquet
                    and prior.json, with figures of them in docs/
    leave-one-out   every model by what the others teach, settings of the trees included
    exponent        gradient scores without other models: how firmly to believe in their exponent
    findings        what Qua²SeDiMo found of sensitive layers, one claim after the other
    time            predictions of 803 layers with 8 entries each
    test            the test models by the prior that is shipped, and plans that are searched with it

All is kept in benchmarks/results/transfer_*.json. Studies and measurements go on where they stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from corpus import Sizes
from results import RESULTS, keep
from threadpoolctl import threadpool_limits
from transfer_exponent import all_judged, comparisons
from transfer_findings import FINDINGS, check
from transfer_models import LEARNT, N_PROBES, SCORE, TODAY, Measured, complete_models, corpus_of, judged
from transfer_search import MOST, compare
from transfer_statistics import Key, summarize

from sedaq.errors import InputError
from sedaq.kernels.timing import clock
from sedaq.progress import shown, track
from sedaq.reports.prior_figures import write_figures
from sedaq.sensitivity.prior.corpus import corpus_fingerprint, read_corpus, write_corpus
from sedaq.sensitivity.prior.fit import MIN_MODELS, fit_prior
from sedaq.sensitivity.prior.learn import SHIPPED_CORPUS
from sedaq.sensitivity.prior.model import MAX_BYTES, LearntPrior
from sedaq.sensitivity.prior.tuning import N_TRIALS, choose_settings
from sedaq.sensitivity.prior.use import SHIPPED_FILE

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "sensitivity" / "prior"
STUDY, NESTED_STUDY = RESULTS / "transfer_study.jsonl", ROOT / "build" / "corpus" / "leave_one_out.study.jsonl"
FIGURES = ROOT / "docs" / "prior.svg"
MAX_SECONDS = 60  # of a fit
N_DRAWS = 1000  # of bootstraps
N_LAYERS, N_ENTRIES = 803, 8  # of SDXL's U-Net, and of a menu

# Of each pair, the first predictor's score less the second one's.
COMPARISONS: tuple[tuple[Key, Key], ...] = (
    *(((LEARNT, n), (SCORE, n)) for n in N_PROBES),
    *(((LEARNT, n), (TODAY, n)) for n in N_PROBES if n),
    *(((LEARNT, 0), (TODAY, n)) for n in N_PROBES if n),
)


def command(stage: str) -> str:
    return f"python benchmarks/transfer.py {stage}"


def gathered(sizes: Sizes) -> tuple[list[str], pd.DataFrame]:
    """The complete models to learn from, and their rows. Raises InputError for too few."""
    names = complete_models(is_test=False, sizes=sizes)
    if len(names) < MIN_MODELS:
        raise InputError(
            f"{len(names)} runs of the corpus are complete, {MIN_MODELS} are needed; make them by `python benchmarks/corpus.py`"
        )
    return names, corpus_of(names)


def numbers_of_probes(sizes: Sizes) -> tuple[int, ...]:
    return tuple(n for n in N_PROBES if n <= sizes.n_probes)


def shipped(folder: Path) -> LearntPrior:
    path = folder / SHIPPED_FILE
    if not path.exists():
        raise InputError(f"{path}: is not there; make it by `{command('corpus')}`")
    return LearntPrior.load(path)


# -- stages ------------------------------------------------------------------------------------------------------------------------------


def make_corpus(sizes: Sizes, *, folder: Path = SHIPPED, study: Path = STUDY, figures: Path = FIGURES, n_trials: int = N_TRIALS) -> None:
    """What is shipped, and what it came to."""
    names, table = gathered(sizes)
    settings = choose_settings(table, study, n_trials=n_trials)
    start = clock()
    prior = fit_prior(table, settings=settings)
    seconds = clock() - start
    write_corpus(folder / SHIPPED_CORPUS, table)
    prior.save(folder / SHIPPED_FILE)
    n_bytes = (folder / SHIPPED_FILE).stat().st_size
    if n_bytes > MAX_BYTES or seconds > MAX_SECONDS:
        raise InputError(f"the prior takes {n_bytes:,} bytes and {seconds:.0f} s; {MAX_BYTES:,} and {MAX_SECONDS} are allowed")
    write_figures(prior, table, figures)
    row = {
        "models": names,
        "n_rows": len(table),
        "n_layers": int(table.groupby("model")["layer"].nunique().sum()),
        "corpus_bytes": (folder / SHIPPED_CORPUS).stat().st_size,
        "prior_bytes": n_bytes,
        "fit_seconds": seconds,
        "n_trials": n_trials,
        "settings": vars(settings),
        "level": prior.level,
        "residual": prior.residual,
        "scale": prior.scale,
        "quality": dict(prior.quality),
    }
    keep("transfer_corpus", command("corpus"), [row], sizes.results)


def leave_one_out(sizes: Sizes, *, study: Path = NESTED_STUDY, n_trials: int = N_TRIALS) -> None:
    """Every model by a prior, and by settings of its trees, that have not seen it."""
    names, table = gathered(sizes)
    if len(names) <= MIN_MODELS:
        raise InputError(f"{len(names)} runs of the corpus are complete; {MIN_MODELS + 1} are needed, so that {MIN_MODELS} are left")
    found = []
    for name in track(names, "models left out"):
        others = table[table["model"] != name].reset_index(drop=True)
        prior = fit_prior(others, settings=choose_settings(others, study, n_trials=n_trials))
        found.append(judged(Measured.of(name), prior, numbers_of_probes(sizes)))
    rows = summarize(found, COMPARISONS, n_draws=N_DRAWS)
    keep("transfer_leave_one_out", command("leave-one-out"), rows, sizes.results, corpus=corpus_fingerprint(table), n_trials=n_trials)


def judge_exponents(sizes: Sizes) -> None:
    """Of the models to learn from."""
    names, n_probes = complete_models(is_test=False, sizes=sizes), numbers_of_probes(sizes)[1:]
    rows = summarize(all_judged(names, n_probes), comparisons(n_probes), n_draws=N_DRAWS)
    keep("transfer_exponent", command("exponent"), rows, sizes.results)


def check_findings(sizes: Sizes) -> None:
    _, table = gathered(sizes)
    keep(
        "transfer_findings",
        command("findings"),
        [check(finding, table, n_draws=N_DRAWS) for finding in FINDINGS],
        sizes.results,
        corpus=corpus_fingerprint(table),
    )


def time_predictions(sizes: Sizes, *, folder: Path = SHIPPED) -> None:
    """Of rows of the corpus, drawn again and again; their properties are there already."""
    prior, corpus = shipped(folder), read_corpus(folder / SHIPPED_CORPUS)
    rows = corpus.sample(N_LAYERS * N_ENTRIES, replace=True, random_state=0, ignore_index=True)
    seconds = []
    for _ in range(6):
        start = clock()
        prior.predict(rows)
        seconds.append(clock() - start)
    row = {"n_layers": N_LAYERS, "n_entries": N_ENTRIES, "seconds": float(np.median(seconds[1:]))}
    keep("transfer_time", command("time"), [row], sizes.results)


def judge_test_models(sizes: Sizes, *, folder: Path = SHIPPED, searching: Callable[..., list[dict[str, Any]]] = compare) -> None:
    """What was never looked at before."""
    prior, names = shipped(folder), complete_models(is_test=True, sizes=sizes)
    if not names:
        raise InputError("no test model's run is complete; make them by `python benchmarks/corpus.py`")
    measured = [Measured.of(name) for name in names]
    rows = summarize([judged(one, prior, numbers_of_probes(sizes)) for one in measured], COMPARISONS, n_draws=N_DRAWS)
    rows["plans"] = [row for one in measured for row in searching(one, prior, n_probes=min(MOST, sizes.n_probes))]
    keep("transfer_test", command("test"), rows, sizes.results, corpus=prior.corpus)


STAGES: dict[str, Callable[[Sizes], None]] = {
    "corpus": make_corpus,
    "leave-one-out": leave_one_out,
    "exponent": judge_exponents,
    "findings": check_findings,
    "time": time_predictions,
    "test": judge_test_models,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    with shown(), threadpool_limits(1):
        for stage in parser.parse_args(arguments).stages:
            STAGES[stage](Sizes())


if __name__ == "__main__":
    main()
