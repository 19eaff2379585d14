"""The whole job on the shipped text-to-image pipelines:  python benchmarks/pipelines.py [NAME …]      → results/pipelines.json

Probe with prompts and guidance, fit the paired feature distance, search at 2.0 and 3.0 bits beside uniform plans of equal bytes, tune, and measure on fresh
noise: Fréchet distance, what is paired with full precision, and how well images follow their captions. The run's folder build/pipelines/NAME is resumed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from digits import rows_of
from results import RESULTS, keep

import sedaq
from sedaq.kernels.timing import clock

NAMES = ("digits-sd", "digits-mmdit")
BITS = (2.0, 3.0)
CONFIGS, PROBE_IMAGES, PROBE_STEPS = 24, 256, 10
IMAGES, STEPS, CAPTIONED, TUNE_STEPS = 1000, 20, 450, 240
GUIDANCE = 2.0
METRIC = "feature_distance"  # what plans are chosen by: few bits bring these models no further from MNIST, but away from themselves


def rows_of_pipeline(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    start = clock()
    sampling = sedaq.SamplingConfig(steps=PROBE_STEPS, guidance=GUIDANCE)
    run = sedaq.Run(folder, name, sampling=sampling, images=PROBE_IMAGES).probe(CONFIGS)
    fitted = run.fit(METRIC)
    plans: list[tuple[str, Any, int]] = [("full precision", None, 0)]
    for bits in BITS:
        found = run.search(sedaq.Budget(bits=bits), verify=4)
        plans += [
            (f"uniform {bits:g}", found.uniform, 0),
            (f"searched {bits:g}", found.plan, 0),
            (f"searched + tuned {bits:g}", found.plan, TUNE_STEPS),
        ]
    for label, plan, tune_steps in plans:
        measured = run.evaluate(label, plan, tune_steps=tune_steps, images=IMAGES, steps=STEPS)
        quantized = run.folder / "models" / label.replace(" ", "") if plan else run.subject.folder
        assert quantized is not None
        followed = rows_of(label, quantized, CAPTIONED, (GUIDANCE,))[0]
        said = {key: followed[key] for key in ("digit", "stroke", "slant")}
        kept = {key: measured[key] for key in ("size_bytes", "bits_per_weight", "tune_steps", "metrics")}
        yield {"model": name, "plan": label, **kept, **said, "spearman": fitted.spearman}
    run.report()
    print(f"{name}: {clock() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, choices=[*NAMES, []])
    names = parser.parse_args().names
    path = RESULTS / "pipelines.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in before if row["model"] not in names]
    conditions = {"configs": CONFIGS, "probe_images": PROBE_IMAGES, "probe_steps": PROBE_STEPS, "images": IMAGES, "steps": STEPS}
    for name in names:
        for row in rows_of_pipeline(name, Path("build/pipelines") / name):
            print(row, flush=True)
            rows.append(row)
            keep("pipelines", "python benchmarks/pipelines.py", rows, guidance=GUIDANCE, metric=METRIC, **conditions)


if __name__ == "__main__":
    main()
