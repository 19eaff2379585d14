"""Tiny random pipelines of many families, built as diffusers builds them, saved and loaded like the real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers as d
import torch

from .dits import auraflow, chroma, dit, flux, hunyuan, lumina2, pixart_alpha, pixart_sigma, sana, sd3
from .parts import PROMPTS
from .unets import controlnet, ddpm, inpainting, ldm, sd, sdxl
from .videos import audio, ltx, wan

__all__ = ["FAMILIES", "PROMPTS", "Family", "saved"]


@dataclass(frozen=True)
class Family:
    """How a pipeline of it is built, and what its sampling needs."""

    build: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)
    prompted: bool = True
    pictures: tuple[int, ...] = ()  # height and width of the input images that it starts from


VIDEO = {"height": 16, "width": 16, "n_frames": 9}
SMALL = {"height": 16, "width": 16}

FAMILIES: dict[str, Family] = {
    "ddpm": Family(ddpm, prompted=False),
    "ldm": Family(ldm, prompted=False),
    "dit": Family(dit, prompted=False),
    "sd": Family(sd, SMALL),
    "sd-ancestral": Family(lambda: sd(scheduler=d.EulerAncestralDiscreteScheduler()), SMALL),
    "sdxl": Family(sdxl, SMALL),
    "img2img": Family(lambda: sd(d.StableDiffusionImg2ImgPipeline), pictures=(16, 16)),
    "inpainting": Family(inpainting, SMALL, pictures=(16, 16)),
    "controlnet": Family(controlnet, pictures=(16, 16)),
    "pixart-alpha": Family(pixart_alpha, {**SMALL}),
    "pixart-sigma": Family(pixart_sigma, {**SMALL, "max_tokens": 16}),
    "hunyuan": Family(hunyuan, SMALL),
    "sd3": Family(sd3, {**SMALL, "max_tokens": 16}),
    "flux": Family(flux, {**SMALL, "max_tokens": 16}),
    "sana": Family(sana, {"height": 32, "width": 32, "max_tokens": 16}),
    "lumina2": Family(lumina2, {**SMALL, "max_tokens": 16}),
    "auraflow": Family(auraflow, {**SMALL}),
    "chroma": Family(chroma, {**SMALL, "max_tokens": 16}),
    "wan": Family(wan, {**VIDEO, "max_tokens": 16}),
    "wan-experts": Family(lambda: wan(experts=True), {**VIDEO, "max_tokens": 16}),
    "ltx": Family(ltx, {"height": 32, "width": 32, "n_frames": 9, "max_tokens": 16}),
    "stable-audio": Family(audio),
}


def saved(name: str, folder: Path) -> Path:
    """The folder of a family's pipeline, written now."""
    torch.manual_seed(0)
    FAMILIES[name].build().save_pretrained(folder / name)
    return folder / name
