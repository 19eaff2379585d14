"""A larger model of our own, on a GPU:  for part in train calibrate encode measure figure; do python benchmarks/cifar.py $part --data DIR; done

- train: a class-conditional U-Net of 22 M weights on CIFAR-10's 32×32 colour images for --minutes, and a classifier for features in a quarter of
  that; the statistics that images are compared with.
- calibrate: the moments of every layer's inputs.
- encode: every layer in every format of its menu, on all cores of the processor.
- measure: probes, the search for 2 bits, tuning, and rows as benchmarks/tuning.py has them; → benchmarks/results/tuning_cifar.json,
  build/cifar/run/models. What was done before is read back.
- figure: images of some of those models; → docs/cifar.png.

DIR holds cifar10_train_jpegs.npz and cifar10_test_jpegs.npz: arrays blob, offsets (image i is blob[offsets[i]:offsets[i + 1]]), labels. They are JPEGs of
quality 75, so that distances compare with each other and with no published ones. --smoke does all of it in small on a CPU, which means nothing.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cifar_features import accuracy, build_classifier, classifier_loss, images_of, save_classifier, save_references
from diffusers import UNet2DModel
from results import RESULTS
from torch.nn import functional as F
from tuned_rows import N_IMAGES, Rows, State, uniform_plan
from tuning import SEEDS, nearest

from sedaq.aq.export.apply import apply
from sedaq.aq.formats import AS_IS
from sedaq.aq.plans.plan import Plan, file_bytes, weight_bits
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.kernels.timing import clock
from sedaq.models.folders import SUBJECT_FILE
from sedaq.models.loading import load
from sedaq.models.sampling import SamplingConfig, sample_in_chunks
from sedaq.models.shipped.recipes import N_CLASSES, NULL_CLASS, build_scheduler
from sedaq.models.shipped.train_denoiser import NULL_SHARE
from sedaq.progress import shown
from sedaq.reports.inputs import RunData
from sedaq.reports.plan_figures import image_grids
from sedaq.reports.style import save_png
from sedaq.search.config import Budget, SearchConfig
from sedaq.search.verb import search_run
from sedaq.sensitivity.predictor.fitting import fit
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings
from sedaq.storage import write_json

FOLDER = Path("build/cifar")  # of --smoke: build/cifar-smoke
RATES = (1.5, 2.0, 3.0)  # of the menus: what a search for 2 bits chooses from


@dataclass(frozen=True)
class Sizes:
    """What is trained and measured."""

    channels: tuple[int, ...] = (64, 128, 224, 224)
    classifier: tuple[int, ...] = (32, 64, 128, 128)
    batch_size: int = 256
    n_configs: int = 40
    n_probe_images: int = 512
    n_images: int = N_IMAGES
    tune_steps: int = 300
    results: Path = RESULTS


SMOKE = Sizes((16, 16, 16, 16), (8, 8, 8, 8), 8, 12, 20, 40, 8, FOLDER.with_name("cifar-smoke"))


def build_unet(sizes: Sizes) -> UNet2DModel:
    """Residual blocks at 32², 16², 8² and 4², self-attention at 8² and 4²."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=sizes.channels,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=min(32, sizes.channels[0] // 2),
        attention_head_dim=min(32, sizes.channels[0]),
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=N_CLASSES + 1,
    )


class Examples:
    """Random batches of images in [-1, 1], mirrored half of the time, drawn where the model is."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int, device: str) -> None:
        self.images, self.labels, self.batch_size, self.device = images.to(device), labels.to(device), batch_size, device

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
        """Images, labels, and the generator of this step."""
        rng = torch.Generator(self.device).manual_seed(step)
        chosen = torch.randint(len(self.images), (self.batch_size,), generator=rng, device=self.device)
        mirrored = torch.rand(self.batch_size, 1, 1, 1, generator=rng, device=self.device) < 0.5
        x = self.images[chosen].float() / 127.5 - 1
        return torch.where(mirrored, x.flip(3), x), self.labels[chosen], rng


class Training:
    """A model, its optimizer and the number of steps done, kept in a file between calls."""

    def __init__(self, path: Path, model: torch.nn.Module, learning_rate: float, device: str) -> None:
        self.path, self.device, self.step = path, device, 0
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.rate = learning_rate
        if path.exists():
            state = torch.load(path, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def run(self, loss_of: Callable[[Any, int], torch.Tensor], minutes: float) -> float:
        """As many steps as there is time for; the rate warms up, and falls to a tenth in the last quarter of the time. Returns the last mean loss."""
        began, loss = clock(), torch.zeros((), device=self.device)
        while (passed := (clock() - began) / (60 * minutes)) < 1:
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
            if self.step % 20 == 0:
                loss.item()  # steps that are only queued would not count as time
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
    splits = {split: images_of(data / f"cifar10_{split}_jpegs.npz") for split in ("train", "test")}
    examples = Examples(*splits["train"], sizes.batch_size, device)
    steps = {"steps": train_denoiser(examples, minutes, sizes, folder)}
    steps["classifier_steps"] = train_classifier(examples, minutes / 4, sizes, folder)
    save_references(folder, {split: images for split, (images, _) in splits.items()}, device)
    right = accuracy(folder, *splits["test"], device)
    write_json(folder / "training.json", "training", {**steps, "classifier_accuracy": right})
    print(f"{steps}; the classifier names {right:.3f} of the test images", flush=True)


def train_denoiser(examples: Examples, minutes: float, sizes: Sizes, folder: Path) -> int:
    """Steps done; the model is in folder/denoiser."""
    scheduler = build_scheduler()

    def denoising(model: Any, step: int) -> torch.Tensor:
        clean, labels, rng = examples.draw(step)
        drawn = partial(torch.rand, len(clean), generator=rng, device=clean.device)
        classes = torch.where(drawn() < NULL_SHARE, NULL_CLASS, labels)
        times = ((torch.arange(len(clean), device=clean.device) + drawn()) * 1000 / len(clean)).long().clamp(max=999)
        noise = torch.randn(clean.shape, generator=rng, device=clean.device)
        noisy = scheduler.add_noise(clean, noise, times).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(model(noisy, times, class_labels=classes).sample.float(), scheduler.get_velocity(clean, noise, times))

    torch.manual_seed(0)
    denoiser = Training(folder / "denoiser.pt", build_unet(sizes), 4e-4, examples.device)
    print(f"denoiser: loss {denoiser.run(denoising, minutes):.4f} after {denoiser.step} steps", flush=True)
    average: Any = denoiser.average
    average.half().cpu().to(memory_format=torch.contiguous_format).save_pretrained(folder / "denoiser")
    scheduler.save_pretrained(folder / "denoiser")
    write_json(
        folder / "denoiser" / SUBJECT_FILE,
        "subject",
        {"conditions": list(range(N_CLASSES)), "null_condition": NULL_CLASS, "extractor": None, "steps": 20},
    )
    return denoiser.step


def train_classifier(examples: Examples, minutes: float, sizes: Sizes, folder: Path) -> int:
    """Steps done; the model is in folder/classifier."""

    def classifying(model: Any, step: int) -> torch.Tensor:
        x, labels, rng = examples.draw(step)
        return classifier_loss(model, x, labels, rng)

    torch.manual_seed(0)
    classifier = Training(folder / "classifier.pt", build_classifier(sizes.classifier), 1e-3, examples.device)
    print(f"classifier: loss {classifier.run(classifying, minutes):.4f} after {classifier.step} steps", flush=True)
    save_classifier(classifier.average, folder / "classifier")
    return classifier.step


def begun(sizes: Sizes, device: str, folder: Path) -> Run:
    settings = Settings(
        n_images=sizes.n_probe_images,
        extractor=f"transformers:{folder / 'classifier'}",
        reference=str(folder / "train.safetensors"),
        sampling=SamplingConfig(steps=10, batch_size=2 * sizes.batch_size),
        rates=RATES,
    )
    run = Run.begin(str(folder / "denoiser"), folder / "run", settings, device=device)
    run.write()
    return run


def tuned(run: Run, name: str, plan: Plan, steps: int) -> tuple[State, dict[str, Any]]:
    """The plan's model, which is kept in the run's folder models, and what a row says of it."""
    out, buffers = run.folder / "models" / name, run.folder / "trajectories"
    made = apply(run.subject, plan, run.store, out, tune=TuneConfig(steps=steps), buffer_folder=buffers, sampling=run.settings.sampling)[""]
    sizes = {"size_bytes": plan.size_bytes, "bits_per_weight": plan.bits_per_weight, "plan": plan.hash}
    return partial(made.installed, run.subject), {**sizes, "tune_steps": steps, "losses": made.losses, "ending": made.ending}


def models(run: Run, sizes: Sizes) -> Iterator[tuple[str, Plan, int]]:
    """Rows of quantized models: name, plan, steps of tuning."""
    uniform = uniform_plan(run, 2.0)
    yield "W2A16 uniform", uniform, 0
    probe(run.subject, run.folder, n_configs=sizes.n_configs, settings=run.settings, device=run.device)
    fit(run)
    searched = search_run(run, Budget(bits=2.0), SearchConfig(verify=4)).plan
    yield "W2A16 searched", searched, 0
    yield "W2A16 searched tuned", searched, sizes.tune_steps
    yield "W2A16 uniform tuned", uniform, sizes.tune_steps


def measure(sizes: Sizes, device: str, folder: Path) -> None:
    run = begun(sizes, device, folder)
    # final figures are of the test images
    final = Run(run.folder, run.subject, replace(run.settings, reference=str(folder / "test.safetensors")), run.subject_argument, device)
    command = "python benchmarks/cifar.py measure"
    rows = Rows(final, "tuning_cifar", command, SEEDS, n_images=sizes.n_images, folder=sizes.results, tune_steps=sizes.tune_steps)
    as_is = {layer.name: AS_IS for layer in run.subject.layers}
    rows.full_precision(size_bytes=file_bytes(run.subject.tensor_specs), bits_per_weight=weight_bits(run.subject, as_is))
    rows.row("W4A16 round to nearest", lambda: nearest(final, 4))
    for name, plan, steps in models(run, sizes):
        rows.row(name, partial(tuned, final, name, plan, steps))


def figure(folder: Path, out: Path) -> None:
    names = {"2 bits, uniform": "W2A16 uniform", "2 bits, searched": "W2A16 searched", "2 bits, tuned": "W2A16 searched tuned"}
    subjects = {"full precision": load(folder / "denoiser")}
    subjects |= {name: load(folder / "run" / "models" / model, quantized=True) for name, model in names.items()}
    images = {name: sample_in_chunks(subject.sample, name, SamplingConfig(), seed=1, n_images=20) for name, subject in subjects.items()}
    save_png(image_grids(RunData({}, grids=images)), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["train", "calibrate", "encode", "measure", "figure"])
    parser.add_argument("--data", type=Path, help="of train")
    parser.add_argument("--minutes", type=float, default=8.0, help="of train")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.smoke and arguments.part in ("train", "measure"):
        parser.error("needs a CUDA device; --smoke tries everything in small on the CPU")
    if arguments.part == "train" and arguments.data is None:
        parser.error("train needs --data")
    sizes = SMOKE if arguments.smoke else Sizes()
    folder = FOLDER.with_name("cifar-smoke") if arguments.smoke else FOLDER
    with shown():
        if arguments.part == "train":
            train(arguments.data, arguments.minutes, sizes, device, folder)
        elif arguments.part == "calibrate":
            begun(sizes, device, folder).store.calibrate()
        elif arguments.part == "encode":
            begun(sizes, "cpu", folder).fill_store()
        elif arguments.part == "measure":
            measure(sizes, device, folder)
        else:
            figure(folder, sizes.results / "cifar.png" if arguments.smoke else Path("docs/cifar.png"))


if __name__ == "__main__":
    main()
