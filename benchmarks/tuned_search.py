"""Plans that were searched for the tuned model beside plans that were searched for the untuned one:  python benchmarks/tuned_search.py RUN [--metric fid]

RUN was probed and fitted (`sedaq probe`, `sedaq fit`); its tuned probes are measured here. All plans of a rate have the same bytes and are tuned for the same
steps. They are measured on noise that nothing was chosen on, over which their paired differences are taken; → results/tuned_search_SUBJECT.json, or
tuned_search_SUBJECT_METRIC.json of another metric than tuned plans are searched by. Rows are kept as they finish and read back.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from tuned_rows import Rows, State, tuned_state

from sedaq.aq.export.apply import assemble
from sedaq.aq.plans.plan import Plan
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.kernels.timing import clock
from sedaq.progress import shown
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_run
from sedaq.sensitivity.metrics.registry import METRICS, TUNED_DEFAULT
from sedaq.sensitivity.predictor.fitting import fit
from sedaq.sensitivity.probing.probe import probe_run
from sedaq.sensitivity.run import Run

BITS = (2.0, 1.5)
N_PROBES, SHORT, STEPS, N_VERIFIED = 36, 40, 300, 8
N_IMAGES, FIRST_SEED, N_SEEDS = 2000, 10, 3  # noise
TODAY = "for the untuned model"


def searches(steps: int) -> dict[str, SearchConfig]:
    """What is held against a search for the untuned model, by name."""
    return {
        "for the tuned model": SearchConfig(verify=N_VERIFIED, tuned=True),
        "for the tuned model, halving": SearchConfig(verify=N_VERIFIED, tuned=True, tune_steps=steps),
    }


def searched(run: Run, bits: float, config: SearchConfig) -> tuple[Plan, float]:
    """A plan, and the seconds of its search."""
    began = clock()
    return search_run(run, Budget(bits=bits), config).plan, clock() - began


def made(run: Run, bits: float, config: SearchConfig, steps: int) -> tuple[State, dict[str, Any]]:
    """The plan of a search, tuned, and what a row says of it."""
    plan, seconds = searched(run, bits, config)
    state, details = tuned_state(run, assemble(run.subject, plan, run.store), TuneConfig(steps=steps))
    return state, {**details, "bits": bits, "plan": plan.hash, "size_bytes": plan.size_bytes, "search_seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, help="of tuning, of the models that are compared")
    parser.add_argument("--images", type=int, default=N_IMAGES, help="from each noise seed")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of noise")
    parser.add_argument("--short", type=int, default=SHORT, help="steps of tuning of the probes")
    parser.add_argument("--metric", choices=list(METRICS), default=TUNED_DEFAULT, help="by which plans are searched for the tuned model")
    arguments = parser.parse_args()
    run, steps, metric = Run.open(arguments.run), arguments.steps, arguments.metric
    command = f"python benchmarks/tuned_search.py {arguments.run} --steps {steps} --images {arguments.images} --short {arguments.short}"
    if arguments.first_seed != FIRST_SEED:
        command += f" --first-seed {arguments.first_seed}"
    stored = f"tuned_search_{run.subject.name}"
    if metric != TUNED_DEFAULT:
        command, stored = f"{command} --metric {metric}", f"{stored}_{metric}"
    seeds = range(arguments.first_seed, arguments.first_seed + N_SEEDS)
    conditions = {"tune_steps": steps, "short_steps": arguments.short, "probes": N_PROBES, "verified": N_VERIFIED}
    rows = Rows(run, stored, command, seeds, n_images=arguments.images, **conditions)
    with shown():
        began = clock()
        probe_run(run, n_configs=N_PROBES, tuned_steps=arguments.short)
        fit(run, metric=metric, tuned=True)
        rows.full_precision(probe_seconds=round(clock() - began, 1))
        for name, config in {TODAY: SearchConfig(verify=N_VERIFIED), **searches(steps)}.items():
            for bits in BITS:
                against = None if name == TODAY else f"{bits:g} bits {TODAY}"
                rows.row(f"{bits:g} bits {name}", partial(made, run, bits, config, steps), against=against)


if __name__ == "__main__":
    main()
