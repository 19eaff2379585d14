"""How well the shipped text-to-image pipelines do what captions say:  python benchmarks/digits.py      → results/digits.json

Images of all 90 full captions, at several weights of guidance: how many are the digit that was asked for, by the shipped classifier, how many have the
stroke and the slant, as measured, and their Fréchet distance to MNIST's test set in the classifier's features.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from results import RESULTS, keep

import sedaq
from sedaq.models.noise import purpose_seed
from sedaq.models.sampling import SamplingConfig, sample_in_chunks
from sedaq.models.shipped.captions import full_captions, slants_of, strokes_of
from sedaq.sensitivity.metrics.extractors import load_extractor
from sedaq.sensitivity.metrics.reference import shipped_reference
from sedaq.sensitivity.metrics.registry import measure
from sedaq.sensitivity.metrics.sample import Sample

STEPS = 20


def rows_of(name: str, folder: Path, n_images: int, guidances: tuple[float, ...]) -> list[dict[str, Any]]:
    captions = full_captions()
    subject = sedaq.load(folder, prompts=captions, quantized=True)
    extract = load_extractor("embedded", image_shape=(1, 32, 32))
    target = shipped_reference("test", extract)
    wanted = torch.arange(n_images) % len(captions)
    digit, stroke, slant = wanted % 10, wanted // 30, (wanted + wanted // 10) % 3
    rows = []
    for guidance in guidances:
        sampling = SamplingConfig(steps=STEPS, guidance=guidance, batch_size=45)
        images = sample_in_chunks(subject.sample, name, sampling, seed=purpose_seed(0, "digits"), n_images=n_images, chunk=90)
        features = extract(images)
        inner = images[..., 2:-2, 2:-2]
        fid = measure(Sample(images, features, target, None, None, len(captions)), seed=0)["fid"]
        rows.append(
            {
                "model": name,
                "guidance": guidance,
                "n_images": n_images,
                "digit": (features.logits.argmax(1) == digit).double().mean().item(),  # type: ignore[union-attr]
                "stroke": (strokes_of(inner) == stroke).double().mean().item(),
                "slant": (slants_of(inner) == slant).double().mean().item(),
                "fid": fid.value,
                "fid_se": fid.se,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits-sd", "digits-mmdit"])
    parser.add_argument("--folder", type=Path, help="of a single model; the shipped one by default")
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--guidances", nargs="+", type=float, default=[1.0, 2.0, 4.0])
    arguments = parser.parse_args()
    shipped = Path(sedaq.__path__[0]) / "models" / "shipped"
    path = RESULTS / "digits.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in before if row["model"] not in arguments.models]
    for name in arguments.models:
        rows += rows_of(name, arguments.folder or shipped / name, arguments.images, tuple(arguments.guidances))
    if arguments.folder is None:
        keep("digits", "python benchmarks/digits.py", rows, steps=STEPS)


if __name__ == "__main__":
    main()
