"""The denoisers of the corpus: which they are, how they are trained and how they are measured. Also FILE.py:FUNCTION of those that are no folder's:

    sedaq probe benchmarks/corpus_models.py:mnist_uvit …

What was trained lies in build/corpus/NAME, or in $SEDAQ_CORPUS/NAME.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    UNet2DModel,
)
from torch import nn

sys.path.append(str(Path(__file__).parent))  # also where sedaq runs this file
from corpus_uvit import UViT

from sedaq.models.folders import stored_dtypes
from sedaq.models.loading import SHIPPED, SHIPPED_FOLDER
from sedaq.models.noise import image_noise
from sedaq.models.sampling import SamplingConfig, conditions_of, split_images
from sedaq.models.shipped.captions import full_captions
from sedaq.models.shipped.recipes import N_CLASSES, build_scheduler
from sedaq.models.subject import Subject

FOLDER = Path(__file__).parents[1] / "build" / "corpus"
N_TOKENS, TEXT_WIDTH = 4, 32  # text tokens of a class, and their width
PATCH = 4  # pixels of a token's side, of a transformer on pixels

Ask = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # denoiser, x, timesteps up to 1000, labels → prediction


def folder_of(name: str) -> Path:
    """Of all that is made of a model, its run among it."""
    return Path(os.environ.get("SEDAQ_CORPUS", FOLDER)) / name


def text_tokens(labels: torch.Tensor) -> torch.Tensor:
    """(n, N_TOKENS, TEXT_WIDTH): what a text encoder would say of each class, drawn once."""
    table = torch.randn(N_CLASSES, N_TOKENS, TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    return table[labels]


def ask_with_class(denoiser: Any, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return denoiser(x, times, class_labels=labels).sample


def ask_uvit(denoiser: Any, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return denoiser(x, timestep=times, class_labels=labels)


def ask_with_text(denoiser: Any, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return denoiser(x, encoder_hidden_states=text_tokens(labels), timestep=times).sample


def ask_flux(denoiser: Any, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Patches are tokens, each with its row and column; the pooled text is the mean of its tokens."""
    text, side = text_tokens(labels), x.shape[-1] // PATCH
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(1.0 * side), torch.arange(1.0 * side))
    answer = denoiser(
        hidden_states=nn.functional.unfold(x, PATCH, stride=PATCH).transpose(1, 2),
        encoder_hidden_states=text,
        pooled_projections=text.mean(1),
        timestep=times / 1000,
        img_ids=places,
        txt_ids=torch.zeros(N_TOKENS, 3),
    ).sample
    return nn.functional.fold(answer.transpose(1, 2), x.shape[2:], PATCH, stride=PATCH)


# -- architectures -----------------------------------------------------------------------------------------------------------------------


def build_unet(down: tuple[str, ...], widths: tuple[int, ...], **others: Any) -> UNet2DModel:
    """Of one residual block a level, on 32×32 colour images."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(down)),
        norm_num_groups=8,
        num_class_embeds=N_CLASSES,
        **others,
    )


def build_attending_unet() -> UNet2DModel:
    """Residual blocks at 32², 16² and 8², self-attention at 8²; time scales and shifts."""
    down = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
    return build_unet(down, (16, 32, 64), attention_head_dim=32, resnet_time_scale_shift="scale_shift")


def build_convolutional_unet() -> UNet2DModel:
    """Convolutions at 32², 16² and 8² and nothing else; time is added."""
    return build_unet(("DownBlock2D",) * 3, (16, 32, 64), add_attention=False)


def build_pixart() -> PixArtTransformer2DModel:
    """PixArt's transformer (Chen et al. 2024): one modulation for all blocks (adaLN-single), cross attention to text tokens."""
    return PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        num_layers=4,
        sample_size=28,
        patch_size=PATCH,
        cross_attention_dim=96,
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
    )


def build_flux() -> FluxTransformer2DModel:
    """FLUX' transformer: two blocks of two streams, image and text, then two of one stream; rotary positions."""
    return FluxTransformer2DModel(
        in_channels=PATCH**2,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 12, 12),
    )


def build_sana() -> SanaTransformer2DModel:
    """Sana's transformer (Xie et al. 2024): linear attention, cross attention to text tokens, feed-forward of depthwise convolutions."""
    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=3,
        attention_head_dim=32,
        num_cross_attention_heads=3,
        cross_attention_head_dim=32,
        cross_attention_dim=96,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
        patch_size=1,
    )


# -- the table ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """How a model is trained, on one core in at most 25 minutes.

    data: mnist (28×28), latents (MNIST's in digits-sd's autoencoder, 4×8×8), cifar (32×32 colour). flow: rectified flow with logit-normal times
    (Esser et al. 2024), else v-prediction on a cosine schedule.
    """

    build: Callable[[], nn.Module]
    ask: Ask
    data: str
    flow: bool
    steps: int
    batch_size: int
    rate: float = 1e-3


BY_CLASS = SamplingConfig(batch_size=64)


@dataclass(frozen=True)
class Model:
    """One model of the corpus.

    training: None for those that sedaq ships. n_images: of probes and of unseen plans; truth_images: of every layer alone; halves of both are multiples
    of ten, the number of conditions of all. steps: of all samplings. sampling: what else is said of them. is_test: never looked at until the end.
    """

    why: str
    training: Training | None = None
    n_images: int = 320
    truth_images: int = 200
    steps: int = 8
    sampling: SamplingConfig = BY_CLASS
    is_test: bool = False


# Ten of the captions with every digit, stroke and slant among them; without guidance, which doubles the time.
CAPTIONS = SamplingConfig(prompts=tuple(full_captions()[::9]), guidance=1.0, batch_size=64)
# Half as many images of U-Nets, which take twice as long and have more layers.
U_NET: dict[str, Any] = {"n_images": 160, "truth_images": 120, "steps": 6}

MODELS = {
    "mnist-dit": Model("a DiT with a modulation in every block"),
    "mnist-unet": Model("a U-Net with little attention", **U_NET | {"n_images": 240}),
    "digits-sd": Model("Stable Diffusion's U-Net with cross attention, in latents", sampling=CAPTIONS, **U_NET),
    "digits-mmdit": Model("Stable Diffusion 3's transformer of two streams, in latents, by flow matching", sampling=CAPTIONS),
    "cifar-unet": Model(
        "colour and photographs; a U-Net of 22 M weights is work for a GPU",
        Training(build_attending_unet, ask_with_class, "cifar", flow=False, steps=2000, batch_size=32),
        **U_NET,
    ),
    "mnist-pixart": Model(
        "one modulation for all blocks, and cross attention",
        Training(build_pixart, ask_with_text, "mnist", flow=False, steps=2500, batch_size=64),
    ),
    "mnist-uvit": Model(
        "long skip connections in a transformer; time and class are tokens",
        Training(UViT, ask_uvit, "mnist", flow=False, steps=2500, batch_size=64),
    ),
    "mnist-flux": Model(
        "two streams that become one, on pixels, by flow matching",
        Training(build_flux, ask_flux, "mnist", flow=True, steps=2500, batch_size=64),
    ),
    "cifar-conv": Model(
        "nothing but convolutions, by flow matching",
        Training(build_convolutional_unet, ask_with_class, "cifar", flow=True, steps=2000, batch_size=32),
        **U_NET,
        is_test=True,
    ),
    "digits-sana": Model(
        "linear attention and depthwise convolutions in a transformer, in latents, by flow matching",
        Training(build_sana, ask_with_text, "latents", flow=True, steps=2500, batch_size=64),
        is_test=True,
    ),
}


def training_of(name: str) -> Training:
    found = MODELS[name].training
    assert found is not None, f"{name} is shipped"
    return found


def subject_argument(name: str) -> str:
    """By which sedaq loads a model of the corpus."""
    training = MODELS[name].training
    if training is None:
        assert name in SHIPPED
        return name
    if training.ask is ask_with_class:  # an ordinary folder of a bare denoiser
        return str(folder_of(name) / "model")
    return f"{Path(__file__)}:{name.replace('-', '_')}"


# -- subjects that are no folder's -------------------------------------------------------------------------------------------------------


def scheduler_of(training: Training) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler() if training.flow else build_scheduler(clip_sample=training.data != "latents")


def digits_vae() -> Any:
    """digits-sd's autoencoder, float32."""
    return AutoencoderKL.from_pretrained(SHIPPED_FOLDER / "digits-sd" / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)


def shape_of(config: Any) -> tuple[int, int, int]:
    """(C, H, W) of what a denoiser of that config works on."""
    if isinstance(config.get("sample_size"), int):
        return config["in_channels"], config["sample_size"], config["sample_size"]
    return config["in_channels"] // PATCH**2, 28, 28  # FLUX' says nothing of its image's size


@torch.inference_mode()
def sample(
    denoiser: Any,
    training: Training,
    decode: Callable[[torch.Tensor], torch.Tensor],
    *,
    seed: int,
    start: int,
    n_images: int,
    steps: int | None = None,
    batch_size: int = 64,
) -> torch.Tensor:
    """Images of `denoiser` with class i mod N_CLASSES, (n_images, C, H, W) in [0, 1]."""
    scheduler, images = scheduler_of(training), []
    for first, count in split_images(start, n_images, batch_size):
        x = image_noise(seed, first, count, shape_of(denoiser.config))
        labels = torch.tensor(conditions_of(range(N_CLASSES), first, count))
        scheduler.set_timesteps(steps or 20)
        for time in scheduler.timesteps:
            x = scheduler.step(training.ask(denoiser, x, time.expand(count), labels), time, x).prev_sample
        images.append((decode(x) / 2 + 0.5).clamp(0, 1))
    return torch.cat(images)


def subject(name: str) -> Subject:
    """A trained model that is asked with more than an image, a time and a class."""
    training = training_of(name)
    folder, kind = folder_of(name) / "model", type(training.build())
    denoiser = kind.from_pretrained(folder, torch_dtype=torch.float32).eval()
    vae = digits_vae() if training.data == "latents" else None
    decode = (lambda x: vae.decode(x / vae.config.scaling_factor).sample) if vae else (lambda x: x)
    sampler = partial(sample, denoiser, training, decode)
    return Subject(
        denoiser,
        sample=sampler,
        conditions=list(range(N_CLASSES)),
        name=name,
        stored_dtypes=stored_dtypes(folder),
        extractor="embedded",
    )


def mnist_pixart() -> Subject:
    return subject("mnist-pixart")


def mnist_uvit() -> Subject:
    return subject("mnist-uvit")


def mnist_flux() -> Subject:
    return subject("mnist-flux")


def digits_sana() -> Subject:
    return subject("digits-sana")
