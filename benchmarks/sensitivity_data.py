"""Measure the plans that predictors are judged by:  python benchmarks/sensitivity_data.py --subject mnist-dit --folder build/sensitivity [--truth]

Into FOLDER/SUBJECT, an ordinary run: 200 stratified probes to learn from; 100 later plans of the same design on other noise ("unseen"), which no
choice may be tuned on; with --truth every layer at every entry of its menu alone, 2,000 images (or --truth-images) on a third noise. Goes on where
it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sedaq.cli.options import executor
from sedaq.progress import shown, track
from sedaq.sensitivity.probing.designs import design_plans
from sedaq.sensitivity.probing.measurer import Measurer, PlanTask
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.run import Run

N_PROBES, N_UNSEEN = 200, 100
ALL = 10**6  # more than the one-layer design has


def unseen_tasks(run: Run) -> list[PlanTask]:
    plans = design_plans("stratified", run.subject.layers, run.menus, n_plans=N_PROBES + N_UNSEEN, seed=run.settings.seed)
    return [PlanTask(plan, run.settings.n_images, "unseen") for plan in plans[N_PROBES:]]


def truth_tasks(run: Run, n_images: int) -> list[PlanTask]:
    plans = design_plans("layer", run.subject.layers, run.menus, n_plans=ALL, seed=run.settings.seed)
    return [PlanTask(plan, n_images, "truth") for plan in plans]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", default="mnist-dit")
    parser.add_argument("--folder", type=Path, default=Path("build/sensitivity"))
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--truth-images", type=int, default=2000, help="225 of mnist-unet's 455 plans are as many as its 200 probes took")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with shown():
        run = probe(arguments.subject, arguments.folder / arguments.subject, n_configs=N_PROBES, executor=executor(arguments.workers))
        tasks = truth_tasks(run, arguments.truth_images) if arguments.truth else unseen_tasks(run)
        with Measurer(Prober(run), executor(arguments.workers)) as measurer:
            for _ in track(measurer.measure(tasks), "truth" if arguments.truth else "unseen probes", len(tasks)):
                pass


if __name__ == "__main__":
    main()
