"""The shipped subjects: which diffusers model each one is, and how it was trained.

Both are class-conditional and work on MNIST's 28×28 pixels directly. Class 10 is the null class: a tenth of the training labels were
replaced by it, so that classifier-free guidance works.

Sizes were chosen by measuring one probe (512 images, 10 steps) on two cores before any training: width 128, patch 4 and 4 blocks takes
5 s; a U-Net with 24 and 48 channels at the two finer resolutions and 128 at the coarsest takes 10 s, while 32/64/128 takes 13 s and
32/128/128 takes 23 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel

N_CLASSES = 10
NULL_CLASS = 10


def build_dit() -> DiTTransformer2DModel:
    """Pixel-space DiT (Peebles & Xie 2023): 49 tokens of 4×4 pixels, width 128, 4 blocks."""
    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        num_layers=4,
        sample_size=28,
        patch_size=4,
        num_embeds_ada_norm=N_CLASSES,
    )


def build_unet() -> UNet2DModel:
    """U-Net with residual blocks at 28², 14² and 7² and self-attention at 7²."""
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(24, 48, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=N_CLASSES + 1,
    )


def build_scheduler(*, clip_sample: bool = True) -> DDIMScheduler:
    """Cosine noise schedule (Nichol & Dhariwal 2021) with v-prediction (Salimans & Ho 2022), which stays defined at pure noise.

    "trailing" spacing starts every sampling at t = 999, so that few steps begin where training did. Pixels are clipped to their range, latents are not.
    """
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=clip_sample
    )


@dataclass(frozen=True)
class Recipe:
    """How to train: an hour to an hour and a half on one core. The learning rate follows a cosine that would reach zero at `horizon`; from
    `cooldown` on it also falls linearly, to zero at `steps`."""

    build: Callable[[], torch.nn.Module]
    learning_rate: float
    horizon: int
    cooldown: int
    steps: int
    batch_size: int = 128
    muon: float | None = None  # learning rate of the blocks' matrices under Muon (Jordan et al. 2024); None: AdamW for all
    bfloat16: bool = True  # autocast


RECIPES = {
    "mnist-dit": Recipe(build_dit, learning_rate=1.5e-3, horizon=10_000, cooldown=9_000, steps=10_000, muon=4e-3, bfloat16=False),
    "mnist-unet": Recipe(build_unet, learning_rate=1e-3, horizon=4_400, cooldown=2_500, steps=3_200),
}
