"""Are numbers the same on every processor?  python benchmarks/processors.py      → results/processors.json

Menus of mnist-dit, and its uniform plan at 2 bits, made anew as a processor with narrower vectors would, with another number of threads, and with another
calibration seed for comparison: which formats and codes stay equal, and the Fréchet distance of the plan on equal noise. Wider vectors than this
machine has cannot be tried on it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import keep

SAME = {"OMP_NUM_THREADS": "2"}
CASES: dict[str, tuple[dict[str, str], int]] = {
    "as it is": (SAME, 0),
    "again": (SAME, 0),
    "one thread": ({"OMP_NUM_THREADS": "1"}, 0),
    "SSE only": (
        {
            **SAME,
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "ATEN_CPU_CAPABILITY": "default",
            "SEDAQ_MAX_ISA": "portable",
        },
        0,
    ),
    "another calibration": (SAME, 1),
}
RATE, N_IMAGES, SEEDS = 2.0, 1000, (0, 1, 2)


def measure(seed: int) -> dict[str, Any]:
    """In a process that the case's variables hold for."""
    import torch

    import sedaq
    from sedaq.aq.plans.menu import RATES
    from sedaq.aq.plans.menu_choice import measured_menus
    from sedaq.aq.plans.store import EncodingStore
    from sedaq.models.noise import purpose_seed
    from sedaq.models.sampling import SamplingConfig
    from sedaq.sensitivity.metrics.extractors import load_extractor
    from sedaq.sensitivity.metrics.reference import shipped_reference
    from sedaq.sensitivity.metrics.registry import measure as metrics_of
    from sedaq.sensitivity.metrics.sample import Sample
    from sedaq.storage import tensor_fingerprint

    subject = sedaq.load("mnist-dit")
    with tempfile.TemporaryDirectory() as folder:
        store = EncodingStore(subject, Path(folder), calibration={"seed": seed, "n_images": 64, "steps": 10})
        menus = measured_menus(store, RATES)
        chosen = {layer.name: next(entry.format for entry in menus[layer.name] if entry.rate >= RATE) for layer in subject.layers}
        encodings = {layer.name: store.get(layer, chosen[layer.name]) for layer in subject.layers}
    extract = load_extractor("embedded", image_shape=subject.image_shape)
    target = shipped_reference("test", extract)
    distances = []
    with subject.weights_replaced({name: encoding.dequantize() for name, encoding in encodings.items()}):
        for number in SEEDS:
            images = subject.sample(SamplingConfig(steps=10), seed=purpose_seed(number, "processors"), n_images=N_IMAGES)
            distances.append(metrics_of(Sample(images, extract(images), target, None, None, subject.cycle), seed=0)["fid"].value)
    return {
        "formats": {name: [str(entry.format) for entry in menu] for name, menu in menus.items()},
        "codes": {name: tensor_fingerprint(sorted(encoding.tensors.items())) for name, encoding in encodings.items()},
        "error": sum(encoding.error for encoding in encodings.values()) / len(encodings),
        "fid": distances,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name, (variables, seed) in CASES.items():
        command = [sys.executable, __file__, "--one", str(seed)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **variables}).stdout
        found[name] = json.loads(output.splitlines()[-1])
        print(name, found[name]["fid"], flush=True)
    first = found["as it is"]
    rows = []
    for name, case in found.items():
        entries = [(a, b) for layer in first["formats"] for a, b in zip(first["formats"][layer], case["formats"][layer], strict=False)]
        rows.append(
            {
                "case": name,
                "capability": case["capability"],
                "equal_formats": sum(a == b for a, b in entries) / len(entries),
                "equal_encodings": sum(case["codes"][layer] == code for layer, code in first["codes"].items()) / len(first["codes"]),
                "error": case["error"],
                "fid": statistics.fmean(case["fid"]),
                "fid_of_seeds": case["fid"],
            }
        )
        print(rows[-1], flush=True)
    keep(
        "processors",
        "python benchmarks/processors.py",
        rows,
        n_images=N_IMAGES,
        rate=RATE,
        variables={name: case[0] for name, case in CASES.items()},
    )


if __name__ == "__main__":
    main()
