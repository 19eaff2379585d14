"""CIFAR-10 as JPEGs, and the classifier whose features its images are compared in: what benchmarks/cifar.py and benchmarks/corpus.py share."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from sedaq.models.shipped.recipes import N_CLASSES
from sedaq.sensitivity.metrics.extractors import load_extractor
from sedaq.sensitivity.metrics.reference import build_reference, save_reference
from sedaq.storage import fingerprint

SIDE = 64  # pixels that the classifier sees; its stem divides by four


def images_of(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 3, 32, 32) uint8 and labels (n,)."""
    with np.load(path, allow_pickle=False) as data:
        blob, offsets, labels = data["blob"], data["offsets"], data["labels"]
    files = (blob[a:b].tobytes() for a, b in zip(offsets, offsets[1:], strict=False))
    pixels = np.stack([np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


def build_classifier(widths: Sequence[int]) -> ResNetForImageClassification:
    """A residual network of four stages."""
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=widths[0], hidden_sizes=list(widths), depths=[2] * 4, layer_type="basic", num_labels=N_CLASSES)
    )


def logits_of(classifier: Any, images: torch.Tensor) -> torch.Tensor:
    """Of images in [-1, 1], as the extractor sees them, whose features these are."""
    seen = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    return classifier(pixel_values=seen).logits.float()


def classifier_loss(classifier: Any, images: torch.Tensor, labels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Cross entropy of a batch moved by one random offset of at most 3 pixels."""
    down, right = torch.randint(-3, 4, (2,), generator=rng, device=images.device).tolist()
    return F.cross_entropy(logits_of(classifier, images.roll((down, right), (2, 3))), labels)


def save_classifier(classifier: Any, folder: Path) -> None:
    """As the extractor transformers:FOLDER reads it."""
    classifier.cpu().to(memory_format=torch.contiguous_format).save_pretrained(folder)
    content = {"size": SIDE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def save_references(folder: Path, images: Mapping[str, torch.Tensor], device: str) -> None:
    """Statistics of the images of each split, by the classifier in folder/classifier, into folder/SPLIT.safetensors."""
    extractor = load_extractor(f"transformers:{folder / 'classifier'}", image_shape=(3, 32, 32), device=device)
    for split, some in images.items():
        description = f"{len(some)} {split} images of CIFAR-10, JPEG quality 75"
        batches = (batch.float() / 255 for batch in some.split(500))
        made = build_reference(batches, extractor, description=description, identity=fingerprint([description]))
        save_reference(folder / f"{split}.safetensors", made, extractor)


def accuracy(folder: Path, images: torch.Tensor, labels: torch.Tensor, device: str) -> float:
    """Share of images that the classifier in folder/classifier names."""
    classifier = ResNetForImageClassification.from_pretrained(folder / "classifier").to(device).eval()
    with torch.inference_mode():
        named = [logits_of(classifier, x.to(device).float() / 127.5 - 1).argmax(1).cpu() for x in images.split(500)]
    return (torch.cat(named) == labels).float().mean().item()
