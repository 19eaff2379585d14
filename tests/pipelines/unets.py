"""Pipelines around U-Nets."""

from __future__ import annotations

from typing import Any

import diffusers as d

from .parts import clip, vae


def unet(text: int = 16, channels: int = 4, **others: Any) -> Any:
    return d.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=text,
        attention_head_dim=2,
        norm_num_groups=4,
        **others,
    )


def ddpm() -> Any:
    model = d.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    return d.DDPMPipeline(model, d.DDPMScheduler())


def ldm() -> Any:
    model = d.UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    vq = d.VQModel(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, num_vq_embeddings=16, sample_size=16)
    return d.LDMPipeline(vq, model, d.DDIMScheduler())


def sd(kind: Any = d.StableDiffusionPipeline, scheduler: Any = None, **others: Any) -> Any:
    words, encoder = clip()
    made = kind(vae(), encoder, words, unet(), scheduler=scheduler or d.DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False, **others)  # fmt: skip
    return made


def inpainting() -> Any:
    words, encoder = clip()
    return d.StableDiffusionInpaintPipeline(
        vae(), encoder, words, unet(channels=9), d.DDIMScheduler(), None, None, requires_safety_checker=False
    )


def controlnet() -> Any:
    words, encoder = clip()
    model = unet()
    net = d.ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(8, 8))
    return d.StableDiffusionControlNetPipeline(
        vae(), encoder, words, model, net, d.DDIMScheduler(), None, None, requires_safety_checker=False
    )


def sdxl() -> Any:
    (words, first), (_, second) = clip(), clip(projection=True)
    model = unet(
        32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 1),
    )
    return d.StableDiffusionXLPipeline(vae(), first, second, words, words, model, d.EulerDiscreteScheduler(), add_watermarker=False)
