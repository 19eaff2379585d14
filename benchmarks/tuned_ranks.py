"""What predicts how plans rank after tuning:  python benchmarks/tuned_ranks.py RUN [--plans N] [--steps N] [--images N]

Random plans of equal bytes at 2.0 bits of a run that was probed (docs/experiments/tuning.md): their excess untuned, after a tenth of the steps and after
all of them, on noise that nothing was chosen on, and what is known of them sooner: the held-out loss before tuning and after SHORT steps of the whole model, of
blocks and of layers. Rows are kept as they finish and read back; → benchmarks/results/tuned_ranks_SUBJECT.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from results import telling
from tuned_rows import OTHER_STEPS, TUNE_STEPS, Rows, State, tuned_state

from sedaq.aq.export.apply import assemble
from sedaq.aq.plans.plan import Plan
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.progress import shown
from sedaq.search.baselines import random_choice
from sedaq.search.building import build_problem
from sedaq.sensitivity.run import Run

BITS, SHORT = 2.0, 20
N_PLANS, N_IMAGES, SEEDS = 20, 1000, (5, 6)
BASE = TuneConfig(n_images=256, judged_images=0)
SOONER = {"whole": BASE, "blocks": replace(BASE, stages=(("blocks", 1.0),)), "layers": replace(BASE, stages=(("layers", 1.0),))}


def random_plans(run: Run, n: int) -> list[Plan]:
    """Of as many bytes as BITS allow, filled at random."""
    problem = build_problem(run.subject, run.menus, lambda name, entry: 0.0).bounded(bits=BITS)
    choices = (random_choice(problem, run.settings.seed, index) for index in range(n))
    return [Plan.of(run.subject, problem.formats(choice), encoding=run.store.identity) for choice in choices]


def untuned(run: Run, plan: Plan) -> tuple[State, dict[str, Any]]:
    """The plan as it is, and losses that are known sooner than images of the tuned model."""
    encodings = assemble(run.subject, plan, run.store)
    state, details = tuned_state(run, encodings)
    losses = {}
    for stage, settings in SOONER.items():
        found = tuned_state(run, encodings, replace(settings, steps=SHORT, check_every=SHORT))[1]["losses"]
        losses |= {"before": found[0][1], stage: min(loss for _, loss in found)}
    return state, {**details, "size_bytes": plan.size_bytes, "plan": plan.hash, "held_out_losses": losses}


def tuned(run: Run, plan: Plan, steps: int) -> tuple[State, dict[str, Any]]:
    return tuned_state(run, assemble(run.subject, plan, run.store), replace(BASE, steps=steps))


@telling()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--plans", type=int, default=N_PLANS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--images", type=int, default=N_IMAGES, help="from each noise seed")
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    name, steps = run.subject.name, arguments.steps or TUNE_STEPS.get(run.subject.name, OTHER_STEPS)
    rows = Rows(
        run,
        f"tuned_ranks_{name}",
        f"python benchmarks/tuned_ranks.py {arguments.run} --plans {arguments.plans} --steps {steps} --images {arguments.images}",
        SEEDS,
        n_images=arguments.images,
        bits=BITS,
        tune_steps=steps,
    )
    with shown():
        rows.full_precision()
        for number, plan in enumerate(random_plans(run, arguments.plans)):
            rows.row(f"plan {number}", partial(untuned, run, plan))
            for own in (steps // 10, steps):
                rows.row(f"plan {number} tuned {own}", partial(tuned, run, plan, own))


if __name__ == "__main__":
    main()
