"""Tiny diffusers models with random weights, on images of 8×8: built in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel


def unet(channels: int = 1, widths: Sequence[int] = (8, 16), *, attends: bool = False, **others: Any) -> UNet2DModel:
    """A U-Net without prompts.

    Args:
        attends: whether its last level has attention.
        others: arguments of the model, in the place of what is written here, too.
    """
    down = ["DownBlock2D"] * (len(widths) - 1) + ["AttnDownBlock2D" if attends else "DownBlock2D"]
    shape = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": down,
        **_up(down),
        **({"attention_head_dim": 8} if attends else {}),
    }
    return UNet2DModel(**{**_levels(widths), **shape, **others})


def prompted_unet(text: int = 16, channels: int = 4, widths: Sequence[int] = (8, 16), **others: Any) -> UNet2DConditionModel:
    """A U-Net with cross attention to embeddings of length `text` in its first level."""
    down = ["CrossAttnDownBlock2D", "DownBlock2D"]
    shape = {"in_channels": channels, "out_channels": 4, "down_block_types": down, **_up(down)}
    return UNet2DConditionModel(**{**_levels(widths), **shape, "cross_attention_dim": text, "attention_head_dim": 2, **others})


def _levels(widths: Sequence[int]) -> dict[str, Any]:
    return {"sample_size": 8, "block_out_channels": tuple(widths), "layers_per_block": 1, "norm_num_groups": 4}


def _up(down: Sequence[str]) -> dict[str, Any]:
    return {"up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)]}


def dit(n_classes: int, channels: int = 1, width: int = 16, n_blocks: int = 1, **others: Any) -> DiTTransformer2DModel:
    """A transformer of two heads with classes."""
    heads = {"num_attention_heads": 2, "attention_head_dim": width // 2, "num_layers": n_blocks}
    shape = {"in_channels": channels, "out_channels": channels, "sample_size": 8, "patch_size": 4}
    return DiTTransformer2DModel(**{**heads, **shape, "num_embeds_ada_norm": n_classes, "norm_num_groups": 4, **others})


def vae(channels: int = 4, *, images: int = 3, levels: int = 2, **others: Any) -> AutoencoderKL:
    """An autoencoder with latents of so many channels."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    shape = {"in_channels": images, "out_channels": images, "latent_channels": channels, "block_out_channels": (8,) * levels}
    return AutoencoderKL(**{**shape, **blocks, "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16, **others})


def save_denoiser(model: Any, folder: Path, scheduler: Any = None) -> Path:
    """Write a bare denoiser with its scheduler, DDIM of 100 timesteps by default."""
    model.save_pretrained(folder)
    (scheduler or DDIMScheduler(num_train_timesteps=100)).save_pretrained(folder)
    return folder
