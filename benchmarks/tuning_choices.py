"""Which settings of tuning do best:  python benchmarks/tuning_choices.py build/tuning/mnist-dit [--bits 4 --activations 8] [--only PART]

Each changes one thing of BASE; the uniform plan of 2.0 bits (or --bits), equal steps, measured on a noise seed that the final tables
do not use (2,000 images, 20 steps). Rows are kept as they finish and read back; → benchmarks/results/tuning_choices_W2A16.json and so on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from results import telling
from tuned_rows import Rows, tuned_state
from tuning import plan_of

from sedaq.aq.activations.calibration import ranged
from sedaq.aq.export.apply import assemble
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.progress import shown
from sedaq.sensitivity.run import Run

BASE = TuneConfig(steps=300, n_images=256, refresh_every=0)
CASES: dict[str, dict[str, Any]] = {
    "256 images": {},
    **{f"learning rate {rate:g}": {"learning_rate": rate} for rate in (2e-3, 5e-3, 2e-2)},
    "codes stay": {"code_step": "none"},
    **{f"code reach {reach:g}": {"code_reach": reach} for reach in (0.05, 0.1, 0.2)},
    **{f"trust ratio {ratio:g}": {"trust_ratio": ratio} for ratio in (0.05, 0.2)},
    **{f"share {share:g}": {"code_share": share} for share in (0.05, 1.0)},
    "straight-through buffer decays by 0.98 a step": {"buffer_decay": 0.98},
    "weighting sensitivity": {"weighting": "sensitivity"},
    "weighting min-snr": {"weighting": "min-snr"},
    "blocks first": {"stages": (("blocks", 0.3), ("whole", 0.7))},
    "layers, blocks first": {"stages": (("layers", 0.15), ("blocks", 0.15), ("whole", 0.7))},
    "running mean, 0.98": {"ema_decay": 0.98},
    "batches of 32": {"batch_size": 32, "steps": 600},
    **{f"{n} images": {"n_images": n} for n in (512, 1024)},
    "512 images, weighting sensitivity": {"n_images": 512, "weighting": "sensitivity"},
}


@telling()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--bits", type=float, default=2.0, help="of the uniform plan")
    parser.add_argument("--activations", type=int, default=16, help="bits of layers' inputs")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    run, bits, activation_bits = Run.open(arguments.run), arguments.bits, arguments.activations
    command = f"python benchmarks/tuning_choices.py build/tuning/{run.subject.name} --bits {bits:g} --activations {activation_bits}"
    rows = Rows(run, f"tuning_choices_W{bits:g}A{activation_bits}", command, (5,), tune_steps=BASE.steps)
    with shown():
        plan = plan_of(run, "uniform", bits, activation_bits)
        encodings, inputs = assemble(run.subject, plan, run.store), ranged(run.subject, plan.activations, run.settings.seed)
        rows.full_precision()
        rows.row("untuned", partial(tuned_state, run, encodings, None, inputs))
        for name, changes in CASES.items():
            if arguments.only in name:
                rows.row(name, partial(tuned_state, run, encodings, replace(BASE, **changes), inputs))


if __name__ == "__main__":
    main()
