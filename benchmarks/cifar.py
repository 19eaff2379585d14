"""A larger model of our own, on a GPU:  python benchmarks/cifar.py train --data DIR;  python benchmarks/cifar.py measure --data DIR

`train` makes a class-conditional U-Net of 36 M weights on CIFAR-10's 32×32 colour images, and a classifier for features, with --minutes for
each of the two; run again, it goes on. `measure` fits the U-Net into 2 bits, tunes it and compares with the test images' statistics;
→ benchmarks/results/cifar.json, build/cifar/run/models/searched+tuned.

DIR holds cifar10_train_jpegs.npz and cifar10_test_jpegs.npz: arrays blob, offsets (image i is blob[offsets[i]:offsets[i + 1]]), labels. They are JPEGs of
quality 75, so that distances compare with each other and with no published ones. --smoke does all of it in small on a CPU, which means nothing.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image
from results import keep
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from sedaq.models.loading import SUBJECT_FILE
from sedaq.models.shipped.recipes import N_CLASSES, NULL_CLASS, build_scheduler
from sedaq.models.shipped.train_denoiser import draw_batch
from sedaq.progress import shown
from sedaq.search.verb import search_run
from sedaq.sensitivity.evaluation import evaluate_plan
from sedaq.sensitivity.fitting import fit
from sedaq.sensitivity.probe import probe
from sedaq.sensitivity.run import Run, Settings
from sedaq.storage import write_json

FOLDER = Path("build/cifar")  # of --smoke: build/cifar-smoke


@dataclass(frozen=True)
class Sizes:
    """What is trained and measured."""

    channels: tuple[int, ...] = (128, 256, 256)
    classifier: tuple[int, ...] = (64, 128, 256, 512)
    batch_size: int = 256
    n_configs: int = 60
    n_probe_images: int = 512
    n_images: int = 2000
    tune_steps: int = 2000


SMOKE = Sizes((16, 16, 16), (8, 8, 8, 8), 8, 12, 20, 40, 8)


def images_of(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 3, 32, 32) uint8 and labels (n,)."""
    with np.load(path, allow_pickle=False) as data:
        blob, offsets, labels = data["blob"], data["offsets"], data["labels"]
    files = (blob[a:b].tobytes() for a, b in zip(offsets, offsets[1:], strict=False))
    pixels = np.stack([np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


def build_unet(sizes: Sizes) -> UNet2DModel:
    """Residual blocks at 32², 16² and 8², self-attention at 16² and 8²."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=sizes.channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=min(32, sizes.channels[0] // 2),
        attention_head_dim=min(64, sizes.channels[0]),
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=N_CLASSES + 1,
    )


class Training:
    """A model, its optimizer and the number of steps done, kept in a file between calls."""

    def __init__(self, path: Path, model: torch.nn.Module, learning_rate: float, device: str) -> None:
        self.path, self.device, self.step = path, device, 0
        self.model = model.to(device).train()
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.rate = learning_rate
        if path.exists():
            state = torch.load(path, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def run(self, loss_of: Any, minutes: float) -> float:
        """As many steps as there is time for; the rate warms up, and falls to a tenth in the last quarter of the time. Returns the last mean loss."""
        began, loss = time.perf_counter(), torch.zeros((), device=self.device)
        while (passed := (time.perf_counter() - began) / (60 * minutes)) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min(1.0, (self.step + 1) / 500) * (1.0 if passed < 0.75 else 1 - 3.6 * (passed - 0.75))
            with torch.autocast(torch.device(self.device).type, torch.bfloat16):
                found = loss_of(self.model, self.step)
            self.optimizer.zero_grad(set_to_none=True)
            found.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1 - min(0.999, (1 + self.step) / (10 + self.step))
            )
            for mine, its in zip(self.average.buffers(), self.model.buffers(), strict=True):
                mine.copy_(its)
            self.step += 1
            loss = found.detach() if self.step == 1 else loss.lerp(found.detach(), 0.01)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)
        return loss.item()


def train(data: Path, minutes: float, sizes: Sizes, device: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = images_of(data / "cifar10_train_jpegs.npz")
    scheduler = build_scheduler()

    def denoising(model: Any, step: int) -> torch.Tensor:
        clean, classes, noise, times = (x.to(device) for x in draw_batch(images, labels, step, 0, sizes.batch_size))
        target = scheduler.get_velocity(clean, noise, times)
        return F.mse_loss(model(scheduler.add_noise(clean, noise, times), times, class_labels=classes).sample.float(), target)

    torch.manual_seed(0)
    denoiser = Training(folder / "denoiser.pt", build_unet(sizes), 3e-4, device)
    print(f"denoiser: loss {denoiser.run(denoising, minutes):.4f} after {denoiser.step} steps", flush=True)
    average: Any = denoiser.average
    average.half().cpu().save_pretrained(folder / "denoiser")
    scheduler.save_pretrained(folder / "denoiser")
    write_json(
        folder / "denoiser" / SUBJECT_FILE,
        "subject",
        {"conditions": list(range(N_CLASSES)), "null_condition": NULL_CLASS, "extractor": None, "steps": 20},
    )

    def classifying(model: Any, step: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(images), (sizes.batch_size,), generator=rng)
        x = images[chosen].to(device).float() / 127.5 - 1
        x = x.flip(3) if step % 2 else x
        shift = torch.randint(-3, 4, (2,), generator=rng).tolist()
        return F.cross_entropy(model(pixel_values=x.roll(shift, (2, 3))).logits.float(), labels[chosen].to(device))

    config = ResNetConfig(
        embedding_size=sizes.classifier[0],
        hidden_sizes=list(sizes.classifier),
        depths=[2] * 4,
        layer_type="basic",
        downsample_in_first_stage=False,
        num_labels=N_CLASSES,
    )
    classifier = Training(folder / "classifier.pt", ResNetForImageClassification(config), 1e-3, device)
    print(f"classifier: loss {classifier.run(classifying, minutes / 4):.4f} after {classifier.step} steps", flush=True)
    average = classifier.average
    test, truth = images_of(data / "cifar10_test_jpegs.npz")
    with torch.inference_mode():
        right = [average(pixel_values=x.to(device).float() / 127.5 - 1).logits.argmax(1).cpu() for x in test.split(500)]
    accuracy = (torch.cat(right) == truth).float().mean().item()
    average.cpu().save_pretrained(folder / "classifier")
    (folder / "classifier" / "preprocessor_config.json").write_text(
        json.dumps({"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    write_json(
        folder / "training.json", "training", {"steps": denoiser.step, "classifier_steps": classifier.step, "classifier_accuracy": accuracy}
    )
    print(f"classifier: {accuracy:.3f} of the test images", flush=True)


def measure(data: Path, sizes: Sizes, device: str, folder: Path) -> list[dict[str, Any]]:
    references = {}
    for split in ("train", "test"):
        references[split] = folder / f"{split}.npz"
        if not references[split].exists():
            np.savez(references[split], images=images_of(data / f"cifar10_{split}_jpegs.npz")[0].permute(0, 2, 3, 1).numpy())
    settings = Settings(
        n_images=sizes.n_probe_images, extractor=f"transformers:{folder / 'classifier'}", reference=str(references["train"])
    )
    with shown():
        run = probe(str(folder / "denoiser"), folder / "run", n_configs=sizes.n_configs, settings=settings, device=device)
        fit(run)
        found = search_run(run, bits=2.0, verify=4)
        final = Run(run.folder, run.subject, replace(run.settings, reference=str(references["test"])), run.subject_argument, device)
        rows = [
            evaluate_plan(final, "full precision", None, n_images=sizes.n_images),
            evaluate_plan(final, "uniform", found.uniform, n_images=sizes.n_images),
            evaluate_plan(final, "searched", found.plan, n_images=sizes.n_images),
            evaluate_plan(final, "searched + tuned", found.plan, tune_steps=sizes.tune_steps, n_images=sizes.n_images),
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["train", "measure"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.smoke:
        parser.error("needs a CUDA device; --smoke tries everything in small on the CPU")
    sizes = SMOKE if arguments.smoke else Sizes()
    folder = FOLDER.with_name("cifar-smoke") if arguments.smoke else FOLDER
    if arguments.part == "train":
        train(arguments.data, arguments.minutes, sizes, device, folder)
        return
    rows = measure(arguments.data, sizes, device, folder)
    if not arguments.smoke:
        keep("cifar", "python benchmarks/cifar.py train && python benchmarks/cifar.py measure", rows)


if __name__ == "__main__":
    main()
