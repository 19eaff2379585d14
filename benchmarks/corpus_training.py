"""Training the denoisers of the corpus: every step draws from a generator seeded with (seed, step), so that training goes on from its checkpoint as if it
had not been stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cifar_features import accuracy, build_classifier, classifier_loss, images_of, save_classifier, save_references
from corpus_models import Training, digits_vae, folder_of, scheduler_of, training_of
from torch.nn import functional as F

from sedaq.models.folders import SUBJECT_FILE
from sedaq.models.layers import put_channels_last
from sedaq.models.shipped.recipes import N_CLASSES
from sedaq.models.shipped.train_denoiser import load_mnist
from sedaq.models.shipped.train_pipeline import Batch, encode, train
from sedaq.storage import write_json

SEED = 0
CLASSIFIER = "cifar-features"  # what CIFAR-10's images are compared in, beside the models
CLASSIFIER_WIDTHS = (16, 32, 64, 64)  # 64 features: their Fréchet distance needs fewer images than 128
CLASSIFIER_STEPS = 1500
N_TESTED = 2000
N_LATENTS = 20_000  # images of MNIST that are encoded; encoding all takes two minutes


def mirrored(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Half of the images (n, C, H, W)."""
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5, images.flip(3), images)


class Examples:
    """What a model learns from, drawn by a step's generator.

    Args:
        data: of Training.
        folder: with mnist.npz, or cifar10_SPLIT_jpegs.npz.
    """

    def __init__(self, data: str, folder: Path, split: str = "train") -> None:
        self.may_mirror = data == "cifar"
        known = images_of(folder / f"cifar10_{split}_jpegs.npz") if data == "cifar" else load_mnist(folder / "mnist.npz", split)
        self.clean, self.labels = known
        self.is_encoded = data == "latents"
        if self.is_encoded:
            vae, some = digits_vae(), F.pad(self.clean[:N_LATENTS], (2, 2, 2, 2))
            self.clean, self.labels = encode(vae, some) * vae.config.scaling_factor, self.labels[:N_LATENTS]

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
        """Images in [-1, 1] or latents, labels, and the generator of all else."""
        chosen, rng = batch
        clean = self.clean[chosen] if self.is_encoded else self.clean[chosen].float() / 127.5 - 1
        return mirrored(clean, rng) if self.may_mirror else clean, self.labels[chosen], rng


def denoising_loss(denoiser: Any, training: Training, clean: torch.Tensor, labels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Mean squared error of the velocity."""
    n, noise = len(clean), torch.randn(clean.shape, generator=rng)
    if training.flow:
        sigmas = torch.randn(n, generator=rng).sigmoid()
        at = sigmas.reshape(-1, 1, 1, 1)
        noisy, times, target = (1 - at) * clean + at * noise, 1000 * sigmas, noise - clean
    else:
        scheduler: Any = scheduler_of(training)
        times = ((torch.arange(n) + torch.rand(n, generator=rng)) * 1000 / n).long().clamp(max=999)  # one of each of n strata
        noisy, target = scheduler.add_noise(clean, noise, times), scheduler.get_velocity(clean, noise, times)
    return F.mse_loss(training.ask(denoiser, noisy, times, labels), target)


def train_model(name: str, data: Path, *, steps: int | None = None) -> Path:
    """The folder of a model, trained unless it is there; `steps`: other than the table's."""
    training = training_of(name)
    folder = folder_of(name)
    if (folder / "model" / SUBJECT_FILE).exists():
        return folder / "model"
    folder.mkdir(parents=True, exist_ok=True)
    examples = Examples(training.data, data)

    def loss_of(denoiser: Any, batch: Batch) -> torch.Tensor:
        return denoising_loss(denoiser, training, *examples.draw(batch))

    torch.manual_seed(SEED)
    denoiser = training.build()
    put_channels_last(denoiser)
    how: dict[str, Any] = {"rate": training.rate, "seed": SEED, "batch_size": training.batch_size}
    average: Any = train(denoiser, loss_of, len(examples), folder / "checkpoint.pt", steps=steps or training.steps, **how)
    average.half().to(memory_format=torch.contiguous_format).save_pretrained(folder / "model")
    scheduler_of(training).save_pretrained(folder / "model")
    known = {"conditions": list(range(N_CLASSES)), "null_condition": None, "steps": 20}
    extractor = None if training.data == "cifar" else "embedded"
    write_json(folder / "model" / SUBJECT_FILE, "subject", {**known, "extractor": extractor})  # the last of the folder
    return folder / "model"


@torch.inference_mode()
def test_loss(name: str, data: Path) -> float:
    """Of a trained model on the first N_TESTED test images."""
    training = training_of(name)
    examples, rng = Examples(training.data, data, "test"), torch.Generator().manual_seed(SEED)
    denoiser = type(training.build()).from_pretrained(folder_of(name) / "model", torch_dtype=torch.float32).eval()
    chosen = torch.arange(min(N_TESTED, len(examples))).split(100)
    losses = [denoising_loss(denoiser, training, *examples.draw((some, rng))).item() for some in chosen]
    return sum(losses) / len(losses)


def train_classifier(data: Path, *, steps: int | None = None) -> Path:
    """The folder of CIFAR-10's classifier and of its statistics of training and test images, made unless they are there."""
    folder = folder_of(CLASSIFIER)
    if (folder / "training.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    examples, steps = Examples("cifar", data), steps or CLASSIFIER_STEPS
    torch.manual_seed(SEED)
    classifier = build_classifier(CLASSIFIER_WIDTHS)
    put_channels_last(classifier)

    def loss_of(model: Any, batch: Batch) -> torch.Tensor:
        return classifier_loss(model, *examples.draw(batch))

    trained = train(classifier, loss_of, len(examples), folder / "checkpoint.pt", steps=steps, rate=1e-3, seed=SEED)
    save_classifier(trained, folder / "classifier")
    images, labels = images_of(data / "cifar10_test_jpegs.npz")
    save_references(folder, {"train": examples.clean[:10_000], "test": images}, "cpu")
    write_json(folder / "training.json", "training", {"steps": steps, "test_accuracy": accuracy(folder, images, labels, "cpu")})
    return folder
