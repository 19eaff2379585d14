"""Plans that were searched for the tuned model beside plans that were searched for the untuned one:  python benchmarks/tuned_search.py RUN [--steps N]

RUN was probed and fitted (`sedaq probe`, `sedaq fit`); its tuned probes are measured here. All plans of a rate have the same bytes and are tuned for the same
steps. They are measured on noise that nothing was chosen on, over which their paired differences are taken; → results/tuned_search_SUBJECT.json. Rows are kept
as they finish and read back.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from results import telling
from tuned_rows import Rows, State, tuned_state

from sedaq.aq.export.apply import assemble
from sedaq.aq.plans.plan import Plan
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.kernels.timing import clock
from sedaq.progress import shown
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_run
from sedaq.sensitivity.predictor.fitting import fit
from sedaq.sensitivity.probing.probe import probe_run
from sedaq.sensitivity.run import Run

BITS = (2.0, 1.5)
N_PROBES, SHORT, STEPS, N_VERIFIED = 36, 20, 300, 8
N_IMAGES, SEEDS = 2000, (7, 8, 9)
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


@telling()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, help="of tuning, of the models that are compared")
    parser.add_argument("--images", type=int, default=N_IMAGES, help="from each noise seed")
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    command = f"python benchmarks/tuned_search.py {arguments.run} --steps {arguments.steps} --images {arguments.images}"
    conditions = {"tune_steps": arguments.steps, "short_steps": SHORT, "probes": N_PROBES, "verified": N_VERIFIED}
    rows = Rows(run, f"tuned_search_{run.subject.name}", command, SEEDS, n_images=arguments.images, **conditions)
    with shown():
        began = clock()
        probe_run(run, n_configs=N_PROBES, tuned_steps=SHORT)
        fit(run, tuned=True)
        rows.full_precision(probe_seconds=round(clock() - began, 1))
        for bits in BITS:
            for name, config in {TODAY: SearchConfig(verify=N_VERIFIED), **searches(arguments.steps)}.items():
                against = None if name == TODAY else f"{bits:g} bits {TODAY}"
                rows.row(f"{bits:g} bits {name}", partial(made, run, bits, config, arguments.steps), against=against)


if __name__ == "__main__":
    main()
