"""How many timesteps calibration should see:  python benchmarks/calibration_steps.py MODEL [MODEL …]      → results/calibration_steps_MODEL_20.json, …_50.json

Twice a model is probed, fitted and searched by samplings of few steps: calibrated in the steps of its probes, and in more of them that differ from
image to image. The plans are measured by images at 20 and at 50 steps, from noise that nothing was chosen on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from corpus_models import MODELS, subject_argument
from tuned_rows import Rows, State, tuned_state

from sedaq.aq.export.apply import assemble
from sedaq.progress import shown
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_run
from sedaq.sensitivity.predictor.fitting import fit
from sedaq.sensitivity.probing.probe import probe_run
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings

FOLDER = Path("build/calibration_steps")
BITS, N_PROBES, N_VERIFIED = (1.5, 2.0), 36, 8
N_IMAGES, SEEDS = 500, (4,)


def calibrated(name: str, *, widely: bool) -> Run:
    """The probed and fitted run, its calibration in the steps of its probes or as runs have it now."""
    model = MODELS[name]
    settings = Settings(n_images=model.n_images, sampling=replace(model.sampling, steps=model.steps))
    run = Run.begin(subject_argument(name), FOLDER / name / ("widely" if widely else "as probes"), settings)
    if not widely:
        run.settings = replace(run.settings, calibration_steps=None)  # as runs of earlier versions have it
    probe_run(run, n_configs=N_PROBES)
    fit(run)
    return run


def table(name: str, sampled_in: int) -> None:
    command = f"python benchmarks/calibration_steps.py {name}"
    for widely in (False, True):
        run = calibrated(name, widely=widely)
        rows = Rows(run, f"calibration_steps_{name}_{sampled_in}", command, SEEDS, n_images=N_IMAGES, steps=sampled_in)

        def made(bits: float, run: Run = run) -> tuple[State, dict[str, Any]]:
            plan = search_run(run, Budget(bits=bits), SearchConfig(verify=N_VERIFIED)).plan
            state, _ = tuned_state(run, assemble(run.subject, plan, run.store))
            return state, {
                "bits": bits,
                "size_bytes": plan.size_bytes,
                "calibration": run.store.calibration,
                "probes_in": run.settings.steps,
            }

        rows.full_precision()
        for bits in BITS:
            rows.row(f"{bits:g} bits, calibrated {'in other steps' if widely else 'as probes'}", partial(made, bits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", choices=sorted(MODELS))
    with shown():
        for name in parser.parse_args().models:
            for sampled_in in (20, 50):
                table(name, sampled_in)


if __name__ == "__main__":
    main()
