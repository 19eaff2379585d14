"""How many images calibration needs:  python benchmarks/calibration_images.py

Layers of the shipped models are encoded under the Hessian of few or many images; the relative output error is taken under that of 512 other images.
Reported: its geometric mean over layers, and how many tokens the layers saw for each of their inputs.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
from results import keep

import sedaq
from sedaq.aq.encoder import encoder
from sedaq.aq.plans.menu import heuristic_menus
from sedaq.models.calibration import calibrate, tokens_per_image
from sedaq.models.sampling import SamplingConfig

IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=3, help="one layer in so many")
    parser.add_argument("--rate", type=float, default=2.0)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in ("mnist-dit", "mnist-unet", "digits-sd"):
        sampling = SamplingConfig(steps=10, guidance=2.0 if name == "digits-sd" else None)
        subject = sedaq.load(name)
        menus = heuristic_menus(subject, [arguments.rate])
        layers = subject.layers[:: arguments.every]
        tokens = tokens_per_image(subject, layers, sampling)
        fresh = dict(calibrate(subject, layers, n_images=512, sampling=sampling, seed=1))
        for n_images in IMAGES:
            seen = dict(calibrate(subject, layers, n_images=n_images, sampling=sampling, seed=0))
            logs = []
            for layer in layers:
                weight = subject.weight(layer.name)
                made = encoder.encode(weight, menus[layer.name][0].format, seen[layer], groups=layer.groups).dequantize()
                logs.append(math.log(encoder.relative_error(weight, made, fresh[layer], layer.groups)))
            per_input = [n_images * tokens[layer.name] / layer.n_in for layer in layers]
            row = {
                "subject": name,
                "n_images": n_images,
                "error": math.exp(sum(logs) / len(logs)),
                "tokens_per_input": {"least": min(per_input), "median": float(np.median(per_input))},
                "layers": [{"tokens_per_input": count, "log_error": log} for count, log in zip(per_input, logs, strict=True)],
            }
            rows.append(row)
            print({key: value for key, value in row.items() if key != "layers"}, flush=True)
    keep("calibration_images", "python benchmarks/calibration_images.py", rows)


if __name__ == "__main__":
    main()
