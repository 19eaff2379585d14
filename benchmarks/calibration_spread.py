"""What timesteps that calibration did not see cost a layer:  python benchmarks/calibration_spread.py

Layers of the shipped models are encoded at 2 bits under Hessians of samplings in few and in many steps, all of about 640 calls; the relative output
error is taken under that of 128 other images in 57 steps. Reported: its geometric mean over the layers that see one vector an image and step, which
says the time, and over every third of the others.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

from results import keep

import sedaq
from sedaq.aq.encoder import encoder
from sedaq.aq.plans.menu import heuristic_menus
from sedaq.models.calibration import calibrate, tokens_per_image
from sedaq.models.hessian import Hessian
from sedaq.models.layers import Layer
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject

N_CALLS, RATE, OTHER_STEPS = 640, 2.0, 57
CALIBRATIONS = ((6, 0.0), (10, 0.0), (20, 0.0), (40, 0.0), (10, 0.2), (20, 0.1), (20, 0.2), (20, 0.4), (40, 0.2))  # steps and their spread


def error(subject: Subject, layers: Sequence[Layer], seen: Mapping[Layer, Hessian], unseen: Mapping[Layer, Hessian]) -> float:
    """Geometric mean over layers, encoded under what was seen, of the relative error on what was not."""
    menus, logs = heuristic_menus(subject, [RATE]), []
    for layer in layers:
        weight = subject.weight(layer.name)
        made = encoder.encode(weight, menus[layer.name][0].format, seen[layer], groups=layer.groups).dequantize()
        logs.append(math.log(encoder.relative_error(weight, made, unseen[layer], layer.groups)))
    return math.exp(sum(logs) / len(logs))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: list[dict[str, Any]] = []
    for name in ("mnist-dit", "mnist-unet", "digits-sd"):
        guidance = 2.0 if name == "digits-sd" else None
        subject = sedaq.load(name)
        tokens = tokens_per_image(subject, subject.layers, SamplingConfig(steps=2, guidance=guidance))
        fewest = min(tokens.values())
        told = [layer for layer in subject.layers if tokens[layer.name] == fewest]
        others = [layer for layer in subject.layers if tokens[layer.name] > fewest][::3]
        unseen = dict(calibrate(subject, told + others, n_images=128, sampling=SamplingConfig(OTHER_STEPS, guidance), seed=1))
        for steps, spread in CALIBRATIONS:
            seen = dict(
                calibrate(subject, told + others, n_images=N_CALLS // steps, sampling=SamplingConfig(steps, guidance), spread=spread)
            )
            row = {"subject": name, "steps": steps, "spread": spread, "n_told": len(told)}
            row |= {kind: error(subject, layers, seen, unseen) for kind, layers in (("told", told), ("others", others))}
            rows.append(row)
            print(row, flush=True)
            keep("calibration_spread", "python benchmarks/calibration_spread.py", rows)


if __name__ == "__main__":
    main()
