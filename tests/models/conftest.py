"""Tiny diffusers models, in seconds and without downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler, DDPMScheduler, DiTPipeline, DiTTransformer2DModel, UNet2DModel


def unet(n_classes: int | None = None) -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=n_classes,
    )


def dit(n_classes: int, channels: int = 1) -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=channels,
        out_channels=channels,
        num_layers=1,
        sample_size=8,
        patch_size=4,
        num_embeds_ada_norm=n_classes,
        norm_num_groups=4,
    )


@pytest.fixture
def make_denoiser(tmp_path: Path) -> Callable[..., Path]:
    """Save a bare denoiser with its scheduler; returns the folder."""

    def make(kind: str = "unet", n_classes: int | None = None, *, scheduler: str = "ddim", dtype: torch.dtype = torch.float32) -> Path:
        torch.manual_seed(0)
        folder = tmp_path / kind
        model = unet(n_classes) if kind == "unet" else dit(n_classes or 10)
        model.to(dtype).save_pretrained(folder)
        {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[scheduler]().save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def unconditional_pipeline(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    DDIMPipeline(unet(), DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    return tmp_path / "ddim"


@pytest.fixture
def class_pipeline(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKL(in_channels=3, out_channels=3, block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8)
    DiTPipeline(dit(1000, channels=4), vae, DDIMScheduler()).save_pretrained(tmp_path / "dit-pipeline")
    return tmp_path / "dit-pipeline"
