"""What each part of tuning is worth:  python benchmarks/tuning_ablation.py build/tuning/mnist-dit

The uniform plan of 2.0 bits, tuned by equal numbers of steps from three tuning seeds, measured on one noise seed (2,000 images, 20
steps). Rows are kept as they finish and read back; → benchmarks/results/tuning_ablation.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from results import telling
from tuned_rows import Rows, tuned_state, uniform_plan

from sedaq.aq.export.apply import assemble
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.progress import shown
from sedaq.sensitivity.run import Run

STEPS = 480  # about two minutes on two cores
SEEDS = (0, 1, 2)
BASE = TuneConfig(steps=STEPS, n_images=256, refresh_every=0)
CASES: dict[str, TuneConfig] = {
    "codebooks only": replace(BASE, code_step="none"),
    "straight-through": replace(BASE, code_step="straight-through"),
    "PV": replace(BASE, optimizer_reset="none"),
    "PV, full reset": replace(BASE, optimizer_reset="full"),
    "PV, SeMI": BASE,
    "PV, consecutive timesteps": replace(BASE, optimizer_reset="none", order="consecutive"),
    "PV, consecutive timesteps, SeMI": replace(BASE, order="consecutive"),
}


@telling()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = Run.open(parser.parse_args().run)
    command = f"python benchmarks/tuning_ablation.py build/tuning/{run.subject.name}"
    rows = Rows(run, "tuning_ablation", command, (4,), tune_steps=STEPS)
    with shown():
        encodings = assemble(run.subject, uniform_plan(run, 2.0), run.store)
        rows.full_precision()
        rows.row("untuned", partial(tuned_state, run, encodings))
        for seed in SEEDS:
            for name, settings in CASES.items():
                rows.row(f"{name}, {seed}", partial(tuned_state, run, encodings, replace(settings, seed=seed)))


if __name__ == "__main__":
    main()
