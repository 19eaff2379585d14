"""Train a shipped denoiser on MNIST:  python -m sedaq.models.shipped.train_denoiser mnist-dit --data mnist.npz

Every step draws from a generator seeded with (seed, step), so a run that was stopped continues from its checkpoint as if it had not been.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import numpy as np
import torch
from diffusers.models.embeddings import LabelEmbedding
from rich.progress import track

from ...storage import write_json
from ..folders import SUBJECT_FILE
from .recipes import N_CLASSES, NULL_CLASS, RECIPES, Recipe, build_scheduler

NULL_SHARE = 0.1
WARMUP_STEPS = 200
EMA_DECAY = 0.999
CHECKPOINT_EVERY = 250


def load_mnist(path: Path, split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 28, 28) uint8 and labels (n,) int64 of `mnist.npz` (keys x_train, y_train, x_test, y_test)."""
    with np.load(path, allow_pickle=False) as data:
        images = torch.from_numpy(data[f"x_{split}"]).unsqueeze(1)
        labels = torch.from_numpy(data[f"y_{split}"]).long()
    return images, labels


def rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, a cosine, and the recipe's cool-down, as a share of the full rate."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    cooldown = min(1.0, (recipe.steps - step) / (recipe.steps - recipe.cooldown))
    return warmup * cooldown * 0.5 * (1 + math.cos(math.pi * step / recipe.horizon))


def draw_batch(
    images: torch.Tensor, labels: torch.Tensor, step: int, seed: int, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (b, 1, 28, 28) in [-1, 1], labels with a tenth of null classes, noise, and stratified timesteps of one training step."""
    rng = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))
    chosen = torch.randint(len(images), (batch_size,), generator=rng)
    clean = images[chosen].float() / 127.5 - 1
    null = torch.rand(batch_size, generator=rng) < NULL_SHARE
    classes = torch.where(null, NULL_CLASS, labels[chosen])
    noise = torch.randn(clean.shape, generator=rng)
    # One timestep from each of batch_size equal strata: less variance of the loss than independent draws.
    timesteps = (torch.arange(batch_size) + torch.rand(batch_size, generator=rng)) * 1000 / batch_size
    return clean, classes, noise, timesteps.long().clamp(max=999)


def build_optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices of the transformer blocks and AdamW for the rest."""
    matrices = {
        name: p for name, p in model.named_parameters() if recipe.muon and p.ndim == 2 and "blocks." in name and "embed" not in name
    }
    others = [p for name, p in model.named_parameters() if name not in matrices]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)]
    if recipe.muon:
        optimizers.append(torch.optim.Muon(matrices.values(), lr=recipe.muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return optimizers


def freeze_label_dropout(model: torch.nn.Module) -> None:
    """Keep diffusers' DiT from dropping labels by itself: each of its blocks would drop other images' labels."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.eval()


def train(recipe: Recipe, data: Path, work: Path, *, device: str, seed: int) -> torch.nn.Module:
    """The exponential moving average of the trained weights, float32. Checkpoints lie in `work`."""
    images, labels = load_mnist(data)
    torch.manual_seed(seed)
    model = recipe.build().to(device).train()
    freeze_label_dropout(model)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = build_optimizers(model, recipe)
    scheduler = build_scheduler()

    checkpoint = work / "checkpoint.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start = state["step"]

    mean_loss = float("nan")
    for step in track(range(start, recipe.steps), description="training", total=recipe.steps, completed=start):
        clean, classes, noise, timesteps = (x.to(device) for x in draw_batch(images, labels, step, seed, recipe.batch_size))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        target = scheduler.get_velocity(clean, noise, timesteps)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.bfloat16):
            predicted = model(noisy, timesteps, class_labels=classes).sample
        loss = (predicted.float() - target).square().mean()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * rate_at(step, recipe)
            optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)

        mean_loss = loss.item() if math.isnan(mean_loss) else 0.99 * mean_loss + 0.01 * loss.item()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == recipe.steps:
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            print(f"step {step + 1}: loss {mean_loss:.4f}", flush=True)
    return average


def export(model: torch.nn.Module, out: Path) -> None:
    """Write a bare denoiser's folder, weights in float16."""
    model.half().cpu().save_pretrained(out)  # type: ignore[operator]
    build_scheduler().save_pretrained(out)
    known = {"conditions": list(range(N_CLASSES)), "null_condition": NULL_CLASS, "extractor": "embedded", "steps": 20}
    write_json(out / SUBJECT_FILE, "subject", known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--out", type=Path, help="folder to write (default: the shipped one)")
    parser.add_argument("--work", type=Path, help="folder of checkpoints (default: build/train/NAME)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    work = arguments.work or Path("build/train") / arguments.name
    work.mkdir(parents=True, exist_ok=True)
    out = arguments.out or Path(__file__).parent / arguments.name
    model = train(RECIPES[arguments.name], arguments.data, work, device=arguments.device, seed=arguments.seed)
    export(model, out)


if __name__ == "__main__":
    main()
