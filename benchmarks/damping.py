"""How much damping the Hessian needs:  python benchmarks/damping.py

Layers of the shipped models are encoded under the Hessian of one calibration at several dampings, for all steps and for error feedback
alone; the relative output error is taken under that Hessian and under that of another calibration, with other noise and four times the
images. Reported: its geometric mean over layers.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from results import keep

import sedaq
from sedaq.aq.encoder import encoder, objective
from sedaq.aq.plans.menu import heuristic_menus
from sedaq.models.calibration import calibrate
from sedaq.models.sampling import SamplingConfig

DAMPINGS = ((1e-1, 0), (3e-2, 0), (1e-2, 0), (1e-3, 0), (1e-4, 0), (1e-6, 0), (1e-4, 1e-2), (1e-3, 2e-2), (1e-3, 3e-2), (1e-3, 1e-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=3, help="one layer in so many")
    parser.add_argument("--rate", type=float, default=2.0)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in ("mnist-dit", "mnist-unet"):
        subject = sedaq.load(name)
        menus = heuristic_menus(subject, [arguments.rate])
        layers = subject.layers[:: arguments.every]
        seen = dict(calibrate(subject, layers, n_images=64, sampling=SamplingConfig(steps=10), seed=0))
        other = dict(calibrate(subject, layers, n_images=256, sampling=SamplingConfig(steps=10), seed=1))
        for damping, feedback in DAMPINGS:
            objective.DAMPING, objective.FEEDBACK_DAMPING = damping, feedback
            logs = {"seen": 0.0, "other": 0.0}
            for layer in layers:
                weight = subject.weight(layer.name)
                made = encoder.encode(weight, menus[layer.name][0].format, seen[layer], groups=layer.groups).dequantize()
                logs["seen"] += math.log(encoder.relative_error(weight, made, seen[layer], layer.groups))
                logs["other"] += math.log(encoder.relative_error(weight, made, other[layer], layer.groups))
            row = {
                "subject": name,
                "damping": damping,
                "feedback": feedback,
                **{which: math.exp(total / len(layers)) for which, total in logs.items()},
            }
            rows.append(row)
            print(row, flush=True)
    keep("damping", "python benchmarks/damping.py", rows)


if __name__ == "__main__":
    main()
