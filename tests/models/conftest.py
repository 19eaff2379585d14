"""Tiny diffusers models, in seconds and without downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, DiTPipeline, FlowMatchEulerDiscreteScheduler

from ..builders import dit, save_denoiser, unet, vae


@pytest.fixture
def make_denoiser(tmp_path: Path) -> Callable[..., Path]:
    """Save a bare denoiser with its scheduler; returns the folder."""

    def make(kind: str = "unet", n_classes: int | None = None, *, scheduler: str = "ddim", dtype: torch.dtype = torch.float32) -> Path:
        torch.manual_seed(0)
        model = unet(num_class_embeds=n_classes) if kind == "unet" else dit(n_classes or 10)
        kinds = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "flow": FlowMatchEulerDiscreteScheduler}
        return save_denoiser(model.to(dtype), tmp_path / kind, kinds[scheduler]())

    return make


@pytest.fixture
def unconditional_pipeline(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    DDIMPipeline(unet(), DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    return tmp_path / "ddim"


@pytest.fixture
def class_pipeline(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    DiTPipeline(dit(1000, channels=4), vae(levels=1), DDIMScheduler()).save_pretrained(tmp_path / "dit-pipeline")
    return tmp_path / "dit-pipeline"
