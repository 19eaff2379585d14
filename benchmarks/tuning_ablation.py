"""What each part of tuning is worth:  python benchmarks/tuning_ablation.py build/sensitivity/mnist-dit

The searched plan of 2.0 bits, tuned by equal numbers of steps from three tuning seeds, measured on one noise seed (2,000 images, 20
steps). Rows are kept as they finish and read back; → benchmarks/results/tuning_ablation.json.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from results import keep
from tuned_rows import Rows
from tuning import plan_of

from sedaq.aq.apply import assemble
from sedaq.aq.tuning.settings import TuneSettings
from sedaq.aq.tuning.tune import Tuned, tune
from sedaq.progress import shown
from sedaq.sensitivity.run import Run

STEPS = 480  # about two minutes on two cores
SEEDS = (0, 1, 2)
BASE = TuneSettings(steps=STEPS)
CASES: dict[str, TuneSettings] = {
    "codebooks only": replace(BASE, code_step="none"),
    "straight-through": replace(BASE, code_step="straight-through"),
    "PV": replace(BASE, forgetting="none"),
    "PV, full reset": replace(BASE, forgetting="full"),
    "PV, SeMI": BASE,
    "PV, consecutive timesteps": replace(BASE, forgetting="none", order="consecutive"),
    "PV, consecutive timesteps, SeMI": replace(BASE, order="consecutive"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = Run.open(parser.parse_args().run)
    folder = run.folder.parent.parent / "tuning" / f"{run.subject.name} ablation"
    rows = Rows(run, folder, (4,))
    encodings = assemble(run.subject, plan_of(run, "searched", 2.0, 16), run.store)

    def made(settings: TuneSettings) -> tuple[Any, dict[str, Any]]:
        tuned = tune(run.subject, encodings, settings, folder=folder, buffer_folder=folder / f"seed {settings.seed}")
        return partial(tuned.installed, run.subject), {"steps": settings.steps, "losses": tuned.losses, "ending": tuned.ending}

    with shown():
        rows.row("full precision", lambda: (nullcontext, {}))
        rows.row("untuned", lambda: (partial(Tuned(encodings, {}).installed, run.subject), {}))
        for name, settings in CASES.items():
            for seed in SEEDS:
                rows.row(f"{name}, {seed}", lambda settings=settings, seed=seed: made(replace(settings, seed=seed)))
        found = [{**row, "excess": rows.difference(name, "full precision")} for name, row in rows.rows.items()]
    keep("tuning_ablation", f"python benchmarks/tuning_ablation.py build/sensitivity/{run.subject.name}", found)


if __name__ == "__main__":
    main()
