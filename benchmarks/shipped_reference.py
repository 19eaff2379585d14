"""Compute the statistics that ship with sedaq:  python benchmarks/shipped_reference.py --data mnist.npz"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sedaq.models.shipped.train_denoiser import load_mnist
from sedaq.sensitivity.metrics.extractors import Extractor, load_extractor
from sedaq.sensitivity.metrics.frechet import Statistics, frechet_distance
from sedaq.sensitivity.metrics.reference import SHIPPED, build_reference, save_reference, shipped_reference
from sedaq.storage import tensor_fingerprint

N_RANDOM = 5000


def write(split: str, data: Path, out: Path, extractor: Extractor) -> None:
    images, _ = load_mnist(data, split)
    batches = (batch.float() / 255 for batch in images.split(500))
    description = f"MNIST {split} set, {len(images)} images"
    reference = build_reference(batches, extractor, description=description, identity=tensor_fingerprint([(split, images)]))
    path = out / f"{split}.safetensors"
    save_reference(path, reference, extractor)
    print(f"{path.name}: {description}, {path.stat().st_size:,} bytes, fingerprint {reference.fingerprint}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    extractor = load_extractor("embedded", image_shape=(1, 28, 28))
    for split in ("train", "test"):
        write(split, arguments.data, arguments.out, extractor)

    images, _ = load_mnist(arguments.data, "train")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(arguments.seed))[:N_RANDOM]
    drawn = Statistics.of(extractor(images[chosen].float() / 255).pooled)
    if arguments.out == SHIPPED:
        train, test = shipped_reference("train", extractor).statistics, shipped_reference("test", extractor).statistics
        print(
            f"Fréchet distance of {N_RANDOM:,} random training images: to test {frechet_distance(drawn, test):.4f}, "
            f"to train {frechet_distance(drawn, train):.4f}; train to test {frechet_distance(train, test):.4f}"
        )


if __name__ == "__main__":
    main()
