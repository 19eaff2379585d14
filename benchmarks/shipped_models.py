"""What the shipped models reach:  python benchmarks/shipped_models.py --data mnist.npz

For each: seconds of one probe (512 images, 10 steps), classifier agreement with the requested class and Fréchet distance to the test set's
statistics of 5,000 samples at 20 steps, beside the same distance of 5,000 random training images; and the classifier's test accuracy.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from results import keep

import sedaq
from sedaq.kernels.timing import clock
from sedaq.models.loading import SHIPPED, SHIPPED_FOLDER
from sedaq.models.sampling import SamplingConfig
from sedaq.models.shipped.classifier import DigitClassifier
from sedaq.models.shipped.train_classifier import accuracy
from sedaq.models.shipped.train_denoiser import load_mnist
from sedaq.progress import shown
from sedaq.sensitivity.evaluation import evaluate
from sedaq.sensitivity.metrics.extractors import load_extractor
from sedaq.sensitivity.metrics.frechet import Statistics, frechet_distance
from sedaq.sensitivity.metrics.reference import shipped_reference

N_IMAGES, STEPS = 5000, 20
N_DRAWS = 5  # of random training images


def training_distance(data: Path) -> dict[str, float]:
    """Fréchet distance to the test statistics of 5,000 random training images, over several draws."""
    extractor = load_extractor("embedded", image_shape=(1, 28, 28))
    reference = shipped_reference("test", extractor)
    images, _ = load_mnist(data)
    distances = []
    for draw in range(N_DRAWS):
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(draw))[:N_IMAGES]
        distances.append(frechet_distance(Statistics.of(extractor(images[chosen].float() / 255).pooled), reference.statistics))
    return {"fid": statistics.mean(distances), "std": statistics.stdev(distances)}


def probe_seconds(subject: sedaq.Subject, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = clock()
        subject.sample(SamplingConfig(steps=10), seed=1, n_images=512)
        times.append(clock() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz")
    arguments = parser.parse_args()
    classifier: Any = DigitClassifier.from_pretrained(SHIPPED_FOLDER / "classifier", torch_dtype=torch.float32)
    training = training_distance(arguments.data)
    rows: list[dict[str, Any]] = [
        {"name": "classifier", "test_accuracy": accuracy(classifier, *load_mnist(arguments.data, "test"))},
        {"name": "5,000 random training images", **training},
    ]
    for name in SHIPPED[:2]:
        subject = sedaq.load(name)
        seconds = probe_seconds(subject)
        with shown():
            result = evaluate(subject, n_images=N_IMAGES, sampling=SamplingConfig(steps=STEPS))
        fid, agreement = result["metrics"]["fid"], result["metrics"]["agreement"]
        rows.append(
            {
                "name": name,
                "probe_seconds": seconds,
                "n_weights": sum(layer.n_weights for layer in subject.layers),
                "layers": len(subject.layers),
                "fid": fid["value"],
                "fid_se": fid["se"],
                "fid_over_training": fid["value"] / training["fid"],
                "agreement": agreement["value"],
                "agreement_se": agreement["se"],
                "file_bytes": sum(p.stat().st_size for p in (SHIPPED_FOLDER / name).iterdir()),
            }
        )
        print(rows[-1], flush=True)
    rows.append(
        {
            "name": "all shipped files",
            "bytes": sum(p.stat().st_size for p in SHIPPED_FOLDER.glob("*/*") if p.suffix in (".json", ".safetensors")),
        }
    )
    keep("shipped_models", "python benchmarks/shipped_models.py --data mnist.npz", rows)


if __name__ == "__main__":
    main()
