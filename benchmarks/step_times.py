"""How well milliseconds a step are foretold:  python benchmarks/step_times.py build/sensitivity/mnist-dit build/sensitivity/mnist-unet

Of each run full precision and the uniform plans of 2 and 4 bits, for 1, 8 and 64 images at once: what StepTimes says before a plan is applied,
and what a step of the applied model takes (`sedaq bench model`).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from results import keep

from sedaq.aq.export.apply import apply
from sedaq.aq.plans.plan import Plan
from sedaq.aq.profiling.model_bench import model_steps
from sedaq.aq.profiling.step_times import StepTimes
from sedaq.progress import shown
from sedaq.sensitivity.probing.designs import at_rate
from sedaq.sensitivity.run import Run

BITS, IMAGES = (2.0, 4.0), (1, 8, 64)


def rows_of(run: Run, folder: Path) -> list[dict[str, Any]]:
    name = run.subject.name
    full = {layer.name: run.menus[layer.name][-1].format for layer in run.subject.layers}
    plans = {name: full}
    for bits in BITS:
        plan = Plan.of(run.subject, {layer: at_rate(menu, bits) for layer, menu in run.menus.items()}, encoding=run.store.identity)
        apply(run.subject, plan, run.store, folder / f"{name}-{bits:g}")
        plans[str(folder / f"{name}-{bits:g}")] = plan.formats
    rows = []
    for n_images in IMAGES:
        times = StepTimes.measure(run.subject, n_images)
        for measured in model_steps(list(plans), n_images=n_images):
            formats = plans[measured["subject"]]
            bits_text = "16" if formats is full else measured["subject"].rpartition("-")[2]
            foretold, real = times.of_plan(formats) / 1e6, 1e3 * measured["seconds_per_step"]
            rows.append(
                {"subject": name, "bits": bits_text, "n_images": n_images, "foretold_ms": foretold, "ms": real, "ratio": foretold / real}
            )
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, shown():
        rows = [row for run in arguments.runs for row in rows_of(Run.open(run), Path(folder))]
    keep("step_times", "python benchmarks/step_times.py build/sensitivity/mnist-dit build/sensitivity/mnist-unet", rows)


if __name__ == "__main__":
    main()
