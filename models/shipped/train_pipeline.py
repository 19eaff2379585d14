"""Train the shipped text-to-image pipelines on MNIST:  python -m sedaq.models.shipped.train_pipeline digits-sd --data mnist.npz

digits-sd    the autoencoder, then a text encoder and a U-Net with cross attention together → a StableDiffusionPipeline
digits-mmdit a two-stream transformer by flow matching, on digits-sd's autoencoder and text encoder → a StableDiffusion3Pipeline

Every step draws from a generator seeded with (seed, step), so that training that was stopped goes on from its checkpoint as if it had not been.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from rich.progress import track
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...storage import write_json
from ..folders import SUBJECT_FILE
from .captions import all_captions, caption, full_captions, slants_of, strokes_of
from .recipes import build_scheduler
from .train_denoiser import load_mnist

TOKENS = 16  # a caption's at most, with the marks of its ends
TEXT_WIDTH = 96
VOCABULARY = 400
NULL_SHARE = 0.1  # of captions that are empty, for classifier-free guidance
PART_SHARE = 0.15  # of strokes, and of slants, that a caption does not name
KL_WEIGHT = 5e-4
EMA_DECAY = 0.999
WARMUP_STEPS = 200
CHECKPOINT_EVERY = 250
BATCH_SIZE = 64
GUIDANCE = 2.0  # by default: with more, images follow their captions no better and vary less

Batch = tuple[torch.Tensor, torch.Generator]  # which images, and what else is drawn in the step


def build_vae() -> AutoencoderKL:
    """32×32 gray pixels to 8×8 latents of 4 channels (Rombach et al. 2022)."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte pairs, learnt on the captions: every word of theirs is one token."""
    captions = all_captions() * 20
    tokenizer: CLIPTokenizer = CLIPTokenizer(model_max_length=TOKENS).train_new_from_iterator(captions, vocab_size=VOCABULARY)
    return tokenizer


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text transformer with 2 layers of width 96."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """Stable Diffusion's U-Net at 8² and 4², cross attention at both."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=3,  # heads, by an old misnomer of diffusers
        norm_num_groups=16,
    )


def build_mmdit() -> SD3Transformer2DModel:
    """Stable Diffusion 3's two-stream transformer (Esser et al. 2024): 64 tokens of one latent each, width 96, 4 blocks."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=96,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=8,
    )


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up and a cosine to zero, as a share of the full learning rate."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def generator_of(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1))


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Batch], torch.Tensor],
    n_images: int,
    work: Path,
    *,
    steps: int,
    rate: float,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> nn.Module:
    """The exponential moving average of the trained weights. `loss_of` (model, (chosen, generator)) is minimised; the checkpoint is `work`."""
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    start, mean_loss = 0, float("nan")
    if work.exists():
        state = torch.load(work, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in track(range(start, steps), description=f"training {work.stem}", total=steps, completed=start):
        rng = generator_of(seed, step)
        loss = loss_of(model, (torch.randint(n_images, (batch_size,), generator=rng), rng))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(step, steps)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - min(EMA_DECAY, (1 + step) / (10 + step)))
            for mine, its in zip(average.buffers(), model.buffers(), strict=True):  # statistics of batch normalization
                mine.copy_(its)
        mean_loss = loss.item() if math.isnan(mean_loss) else 0.99 * mean_loss + 0.01 * loss.item()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, work.with_suffix(".tmp"))
            work.with_suffix(".tmp").replace(work)
            print(f"{work.stem} step {step + 1}: loss {mean_loss:.4f}", flush=True)
    return average


def train_vae(images: torch.Tensor, work: Path, *, steps: int, seed: int) -> AutoencoderKL:
    """With a scaling factor that gives latents a standard deviation of 1."""

    def loss_of(vae: Any, batch: Batch) -> torch.Tensor:
        chosen, rng = batch
        clean = images[chosen].float() / 127.5 - 1
        latents = vae.encode(clean).latent_dist
        decoded = vae.decode(latents.mean + latents.std * torch.randn(latents.mean.shape, generator=rng)).sample
        return F.l1_loss(decoded, clean) + F.mse_loss(decoded, clean) + KL_WEIGHT * latents.kl().mean() / latents.mean[0].numel()

    torch.manual_seed(seed)
    vae: Any = train(build_vae(), loss_of, len(images), work / "vae.pt", steps=steps, rate=2e-3, seed=seed)
    deviation = encode(vae, images[:4000]).std().item()
    vae.register_to_config(scaling_factor=round(1 / deviation, 4), shift_factor=0.0)
    return vae.half().float()  # type: ignore[no-any-return]  # what is stored is what the latents are made with


@torch.inference_mode()
def encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Means of the latents, before scaling."""
    return torch.cat([vae.encode(some.float() / 127.5 - 1).latent_dist.mean for some in images.split(500)])


class Captions:
    """Token ids of the captions of images, drawn with and without their parts."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, tokenizer: CLIPTokenizer) -> None:
        pixels = images.float() / 255
        self.labels, self.strokes, self.slants = labels, strokes_of(pixels), slants_of(pixels)
        self.tokenizer = tokenizer

    def draw(self, chosen: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """(b, TOKENS)"""
        empty = torch.rand(len(chosen), generator=rng) < NULL_SHARE
        stroke, lean = (torch.rand(len(chosen), generator=rng) >= PART_SHARE for _ in range(2))
        texts = [
            ""
            if empty[i]
            else caption(int(self.labels[n]), int(self.strokes[n]) if stroke[i] else None, int(self.slants[n]) if lean[i] else None)
            for i, n in enumerate(chosen.tolist())
        ]
        ids: torch.Tensor = self.tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
        return ids


def train_sd(images: torch.Tensor, labels: torch.Tensor, work: Path, *, steps: int, seed: int) -> StableDiffusionPipeline:
    vae = train_vae(images, work, steps=max(1, steps // 3), seed=seed)
    latents = encode(vae, images) * vae.config.scaling_factor
    tokenizer, scheduler = build_tokenizer(), build_scheduler(clip_sample=False)
    captions = Captions(images, labels, tokenizer)

    def loss_of(both: Any, batch: Batch) -> torch.Tensor:
        chosen, rng = batch
        states = both["text_encoder"](captions.draw(chosen, rng))[0]
        clean, noise = latents[chosen], torch.randn(latents[chosen].shape, generator=rng)
        times = ((torch.arange(BATCH_SIZE) + torch.rand(BATCH_SIZE, generator=rng)) * 1000 / BATCH_SIZE).long().clamp(max=999)
        predicted = both["unet"](scheduler.add_noise(clean, noise, times), times, encoder_hidden_states=states).sample
        return F.mse_loss(predicted, scheduler.get_velocity(clean, noise, times))

    torch.manual_seed(seed)
    both = nn.ModuleDict({"text_encoder": build_text_encoder(tokenizer), "unet": build_unet()})
    trained: Any = train(both, loss_of, len(images), work / "unet.pt", steps=steps, rate=1e-3, seed=seed)
    return StableDiffusionPipeline(
        vae, trained["text_encoder"], tokenizer, trained["unet"], scheduler, None, None, requires_safety_checker=False
    )


def train_mmdit(images: torch.Tensor, labels: torch.Tensor, work: Path, sd: Path, *, steps: int, seed: int) -> StableDiffusion3Pipeline:
    """Flow matching with logit-normal timesteps. Both of the pipeline's CLIP encoders are digits-sd's."""
    vae: Any = AutoencoderKL.from_pretrained(sd / "vae", torch_dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(sd / "tokenizer")
    encoder: Any = CLIPTextModelWithProjection.from_pretrained(sd / "text_encoder", torch_dtype=torch.float32)
    encoder.text_projection.weight.data = torch.eye(TEXT_WIDTH)  # the pooled text is the last mark's state
    latents = encode(vae, images) * vae.config.scaling_factor
    captions = Captions(images, labels, tokenizer)
    pipeline = StableDiffusion3Pipeline(
        build_mmdit(), FlowMatchEulerDiscreteScheduler(shift=1.0), vae, encoder, tokenizer, copy.deepcopy(encoder), tokenizer, None, None
    )
    texts = {text: number for number, text in enumerate(["", *all_captions()])}
    with torch.inference_mode():
        # Behind a caption's tokens come zeros in the place of a third encoder's, by default 256 of them.
        states, _, pooled, _ = pipeline.encode_prompt(list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=1)
    by_ids = {tuple(captions.tokenizer(text, padding="max_length", max_length=TOKENS).input_ids): row for text, row in texts.items()}

    def loss_of(model: Any, batch: Batch) -> torch.Tensor:
        chosen, rng = batch
        rows = torch.tensor([by_ids[tuple(ids)] for ids in captions.draw(chosen, rng).tolist()])
        clean, noise = latents[chosen], torch.randn(latents[chosen].shape, generator=rng)
        sigmas = torch.randn(BATCH_SIZE, generator=rng).sigmoid()
        at = sigmas.reshape(-1, 1, 1, 1)
        predicted = model((1 - at) * clean + at * noise, states[rows].clone(), pooled[rows].clone(), 1000 * sigmas).sample
        return F.mse_loss(predicted, noise - clean)

    torch.manual_seed(seed)
    pipeline.transformer = train(build_mmdit(), loss_of, len(images), work / "transformer.pt", steps=steps, rate=1e-3, seed=seed)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("digits-sd", "digits-mmdit"))
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--out", type=Path, help="folder to write (default: the shipped one)")
    parser.add_argument("--work", type=Path, help="folder of checkpoints (default: build/train/NAME)")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shipped = Path(__file__).parent
    work, out = arguments.work or Path("build/train") / arguments.name, arguments.out or shipped / arguments.name
    work.mkdir(parents=True, exist_ok=True)
    images, labels = load_mnist(arguments.data)
    images = F.pad(images, (2, 2, 2, 2))
    if arguments.name == "digits-sd":
        pipeline: Any = train_sd(images, labels, work, steps=arguments.steps, seed=arguments.seed)
    else:
        pipeline = train_mmdit(images, labels, work, shipped / "digits-sd", steps=arguments.steps, seed=arguments.seed)
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    for path in out.glob("*/config.json"):  # diffusers notes where a part was loaded from
        config = {name: value for name, value in json.loads(path.read_text()).items() if name != "_name_or_path"}
        path.write_text(json.dumps(config, indent=2) + "\n")
    known = {"conditions": full_captions(), "extractor": "embedded", "steps": 20, "guidance": GUIDANCE, "batch_size": 64}
    if arguments.name == "digits-mmdit":
        known["max_tokens"] = 1
    write_json(out / SUBJECT_FILE, "subject", known)


if __name__ == "__main__":
    main()
