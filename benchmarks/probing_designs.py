"""What asking for the plans that teach most is worth:  python benchmarks/probing_designs.py build/sensitivity/mnist-dit [--workers 2]

`--design auto` against stratified plans for as many sampled images, with all images a plan or with a quarter of them. Each learns a predictor, which is judged
by plans that no design has seen (RUN's "unseen"), and by the exact solver's plans at BITS, measured on fresh noise. Needs what sensitivity_data.py
measured; works in a copy beside it, which it goes on with.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from results import keep
from threadpoolctl import threadpool_limits

from sedaq.cli.options import executor
from sedaq.progress import shown, track
from sedaq.search.building import build_problem
from sedaq.search.exact import solve_exact
from sedaq.sensitivity.predictor.cross_validation import spearman
from sedaq.sensitivity.predictor.fitting import error_of
from sedaq.sensitivity.predictor.predictor import Predictor
from sedaq.sensitivity.probing.adaptive import FEW
from sedaq.sensitivity.probing.designs import design_plans
from sedaq.sensitivity.probing.layer_statistics import LayerStatistics
from sedaq.sensitivity.probing.measurer import Measurer, PlanTask
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.probing.probes import Probes, read_probes
from sedaq.sensitivity.run import Run
from sedaq.storage import read_records

LIMIT, BITS, CHECK_IMAGES = 64, (1.5, 2.0, 2.5, 3.0), 2000
SHARED = ("run.json", "calibration", "menus", "books", "encodings")  # of a run, whatever is probed


def beside(run: Path, name: str) -> Path:
    """A run of the same encodings with probes of its own."""
    folder = run.parent / f"{run.name}-{name}"
    folder.mkdir(exist_ok=True)
    for part in SHARED:
        if (run / part).exists() and not (folder / part).exists():
            (folder / part).symlink_to((run / part).resolve())
    return folder


def images_of(folder: Path) -> int:
    return sum(record["n_images"] for record in read_records(folder / "probes.jsonl", "probe") if record["purpose"] == "probe")


def designs(run: Run, workers: int) -> dict[str, tuple[Probes, int]]:
    """Probes of each design and how many images they took."""
    auto = beside(run.folder, "auto")
    probe(str(run.subject_argument), auto, n_configs=LIMIT, design="auto", executor=executor(workers))
    spent = images_of(auto)
    few = Run.open(beside(run.folder, "few"))
    size = run.settings.n_images // FEW
    plans = design_plans("stratified", run.subject.layers, run.menus, n_plans=spent // size, seed=run.settings.seed)
    with Measurer(Prober(few), executor(workers)) as measurer:
        for _ in track(measurer.measure([PlanTask(plan, size) for plan in plans]), "stratified, a quarter of the images", len(plans)):
            pass
    every_image = read_probes(run)
    n = -(-spent // run.settings.n_images)
    return {
        "auto": (read_probes(Run.open(auto)), spent),
        "stratified": (every_image[np.arange(n)], n * run.settings.n_images),
        "stratified, a quarter of the images": (read_probes(few), images_of(few.folder)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with shown():
        for folder in arguments.runs:
            run = Run.open(folder)
            statistics, unseen = LayerStatistics(run), read_probes(run, purpose="unseen")
            judged, tasks = {}, []
            for name, (probes, n_images) in designs(run, arguments.workers).items():
                with threadpool_limits(1):
                    predictor = Predictor.fit("fid", probes, error_of=error_of(statistics))
                said = predictor.predict_arrays(unseen.errors, unseen.rates)[0]
                off = np.median(np.abs(np.log(said / unseen.values)))
                problem = build_problem(run.subject, run.menus, predictor.additive_cost)
                plans = [problem.formats(solve_exact(problem.bounded(bits=bits))[0]) for bits in BITS]
                tasks += [PlanTask(plan, CHECK_IMAGES, "designs") for plan in plans]
                judged[name] = {
                    "probes": len(probes),
                    "images": n_images,
                    "spearman": spearman(said, unseen.values),
                    "median_log_error": float(off),
                }
            with Measurer(Prober(run), executor(arguments.workers)) as measurer:
                measured = list(track(measurer.in_order(tasks), "plans of each design", len(tasks)))
            for index, (name, scores) in enumerate(judged.items()):
                found = [one.metrics["fid_excess"] for one in measured[index * len(BITS) : (index + 1) * len(BITS)]]
                excess = {f"{bits:g}": [metric.value, metric.se] for bits, metric in zip(BITS, found, strict=True)}
                rows.append({"model": run.folder.name, "design": name, **scores, "excess_at_bits": excess})
                print(rows[-1], flush=True)
    command = "python benchmarks/probing_designs.py build/sensitivity/mnist-dit build/sensitivity/mnist-unet"
    keep("probing_designs", command, rows)


if __name__ == "__main__":
    main()
