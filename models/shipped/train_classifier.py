"""Train the digit classifier:  python -m sedaq.models.shipped.train_classifier --data mnist.npz"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.progress import track
from torch.nn import functional as F

from .classifier import DigitClassifier
from .train_denoiser import load_mnist

BATCH_SIZE = 128
EPOCHS = 5
SHIFT = 2  # pixels, at most, in both directions


def shifted(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """The batch (n, 1, 28, 28) moved by one random offset, so that features depend less on position."""
    dy, dx = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=rng).tolist()
    return torch.roll(images, (dy, dx), dims=(2, 3))


def accuracy(model: DigitClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([model(batch.float() / 255)[1].argmax(1) for batch in images.split(500)])
    return (predicted == labels).double().mean().item()


def train(data: Path, *, seed: int) -> DigitClassifier:
    images, labels = load_mnist(data)
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = DigitClassifier().train()
    steps = EPOCHS * (len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in track(range(steps), description="training"):
        chosen = torch.randint(len(images), (BATCH_SIZE,), generator=rng)
        _, logits = model(shifted(images[chosen].float() / 255, rng))
        loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "classifier")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = train(arguments.data, seed=arguments.seed).half().float()  # what is stored is what is measured
    print(f"test accuracy {accuracy(model, *load_mnist(arguments.data, 'test')):.4f}")
    model.half().save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
