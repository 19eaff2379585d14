"""Which weighting of timesteps gives the best images:  python benchmarks/calibration_weighting.py

A shipped model, every layer at the format that the rule names for a rate, encoded under the Hessian of each weighting; Fréchet distance to
the training statistics and PSNR to full precision over several noise seeds, the same for all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from results import keep

import sedaq
from sedaq.aq.plans.menu import heuristic_menus
from sedaq.aq.plans.store import EncodingStore
from sedaq.models.calibration import WEIGHTINGS
from sedaq.models.sampling import SamplingConfig
from sedaq.sensitivity.metrics.extractors import load_extractor
from sedaq.sensitivity.metrics.reference import shipped_reference
from sedaq.sensitivity.metrics.registry import measure
from sedaq.sensitivity.metrics.sample import Sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", nargs="+", default=["mnist-dit", "mnist-unet"])
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.subjects:
        subject = sedaq.load(name)
        extract = load_extractor("embedded", image_shape=subject.image_shape)
        reference = shipped_reference("train", extract)

        def sampled(seed: int) -> Any:
            images = subject.sample(SamplingConfig(steps=arguments.steps), seed=seed, n_images=arguments.images)  # noqa: B023 (used at once)
            return images, extract(images)  # noqa: B023

        full_precision = {seed: Sample(*sampled(seed), reference) for seed in arguments.seeds}
        menus = heuristic_menus(subject, [arguments.rate])
        for weighting in WEIGHTINGS:
            with tempfile.TemporaryDirectory() as folder:
                calibration = {"seed": 0, "n_images": 64, "steps": arguments.steps, "weighting": weighting}
                store = EncodingStore(subject, Path(folder), calibration=calibration)
                store.fill([(layer, menus[layer.name][0].format) for layer in subject.layers])
                weights = {layer.name: store.get(layer, menus[layer.name][0].format).dequantize() for layer in subject.layers}
            with subject.weights_replaced(weights):
                measured = [(seed, *sampled(seed)) for seed in arguments.seeds]
            metrics = [
                measure(Sample(images, features, reference, full_precision=full_precision[seed]), seed=0)
                for seed, images, features in measured
            ]
            row: dict[str, Any] = {"subject": name, "weighting": weighting, "rate": arguments.rate, "n_images": arguments.images}
            for metric in ("fid", "psnr"):
                values = [found[metric].value for found in metrics]
                row[metric] = {"mean": statistics.mean(values), "sd": statistics.stdev(values), "values": values}
            rows.append(row)
            print(name, weighting, row["fid"], row["psnr"], flush=True)
    keep(f"calibration_weighting_{arguments.rate:g}", f"python benchmarks/calibration_weighting.py --rate {arguments.rate:g}", rows)


if __name__ == "__main__":
    main()
