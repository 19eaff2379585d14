"""What is predicted of a run that was not fitted: by what other models taught, and by the few probes that there are."""

from __future__ import annotations

from ...errors import InputError
from ..metrics.registry import DEFAULT
from ..prior.use import seen_before
from ..probing.layer_statistics import LayerStatistics
from ..probing.probes import MIN_PROBES, layer_table, read_probes
from ..run import PROBE, Run, probe_journal
from .fitting import error_of, load_predictor, predictor_folder
from .predictor import PREDICTOR_FILE, Predictor

MIN_FEW = 3  # probes from which anything is learnt
NOTHING, BY_PRIOR = (
    "nothing was measured",
    "the plan goes by what other models taught, and predictions are multiples of full precision's own",
)


def predictor_of(run: Run, *, tuned: bool = False) -> Predictor:
    """What `fit` wrote; where nothing was fitted and there are too few probes for it, what a learnt prior and these say, but of tuned plans.

    Raises:
        InputError: nothing was fitted, and there are enough probes, or no prior was learnt.
    """
    if tuned or (predictor_folder(run) / PREDICTOR_FILE).exists():
        return load_predictor(run, tuned=tuned)
    n_probes = len({r["plan_hash"] for r in probe_journal(run.folder).read() if r["purpose"] == PROBE and r["steps"] == run.settings.steps})
    if n_probes >= MIN_PROBES:
        return load_predictor(run)  # which says that `fit` is to be run
    statistics = LayerStatistics(run)
    table = layer_table(run, statistics)
    learnt = table.priors.learnt
    if learnt is None:
        raise InputError(
            f"{run.folder}: has no predictor, and no prior was learnt from other models; run `sedaq probe` for {MIN_PROBES} plans or more and `sedaq fit`, "
            "or teach a prior by `sedaq learn`"
        )
    seen = seen_before(run)
    if n_probes >= MIN_FEW:
        probes = read_probes(run, DEFAULT, statistics=statistics, at_least=MIN_FEW)
        note = f"only {n_probes} plans were measured: the plan goes by what other models taught, corrected by them; `sedaq fit` takes {MIN_PROBES}"
        return Predictor.fit(DEFAULT, probes, error_of=error_of(statistics), seed=run.settings.seed, notes=(note, *seen))
    note = f"{NOTHING if n_probes == 0 else 'too little was measured'}: {BY_PRIOR} {DEFAULT}"
    return Predictor.of_prior(
        DEFAULT, table, full_precision=1.0, error_of=error_of(statistics), seed=run.settings.seed, notes=(note, *seen)
    )
