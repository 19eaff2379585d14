"""Pipelines around U-Nets."""

from __future__ import annotations

from typing import Any

import diffusers as d

from ..builders import prompted_unet, unet, vae
from .parts import clip


def ddpm() -> Any:
    return d.DDPMPipeline(unet(3, attends=True), d.DDPMScheduler())


def ldm() -> Any:
    vq = d.VQModel(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, num_vq_embeddings=16, sample_size=16)
    return d.LDMPipeline(vq, unet(4), d.DDIMScheduler())


def sd(kind: Any = d.StableDiffusionPipeline, scheduler: Any = None, **others: Any) -> Any:
    words, encoder = clip()
    made = kind(vae(), encoder, words, prompted_unet(), scheduler=scheduler or d.DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False, **others)  # fmt: skip
    return made


def inpainting() -> Any:
    words, encoder = clip()
    return d.StableDiffusionInpaintPipeline(
        vae(), encoder, words, prompted_unet(channels=9), d.DDIMScheduler(), None, None, requires_safety_checker=False
    )


def controlnet() -> Any:
    words, encoder = clip()
    model = prompted_unet()
    net = d.ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(8, 8))
    return d.StableDiffusionControlNetPipeline(
        vae(), encoder, words, model, net, d.DDIMScheduler(), None, None, requires_safety_checker=False
    )


def sdxl() -> Any:
    (words, first), (_, second) = clip(), clip(projection=True)
    model = prompted_unet(
        32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 1),
    )
    return d.StableDiffusionXLPipeline(vae(), first, second, words, words, model, d.EulerDiscreteScheduler(), add_watermarker=False)
