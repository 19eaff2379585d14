"""Pipelines around transformers."""

from __future__ import annotations

from typing import Any

import diffusers as d
import transformers as t

from .. import builders
from ..builders import vae
from .parts import clip, flow, gemma, t5, tokenizer


def dit() -> Any:
    return d.DiTPipeline(builders.dit(1000, 4, n_blocks=2, out_channels=8), vae(), d.DDIMScheduler())


def _pixart() -> tuple[Any, ...]:
    words, encoder = t5()
    model = d.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=16,
        use_additional_conditions=False,
        norm_num_groups=4,
    )
    return words, encoder, vae(), model, d.DPMSolverMultistepScheduler()


def pixart_alpha() -> Any:
    return d.PixArtAlphaPipeline(*_pixart())


def pixart_sigma() -> Any:
    return d.PixArtSigmaPipeline(*_pixart())


def hunyuan() -> Any:
    words = tokenizer(t.BertTokenizer)
    config = t.BertConfig(
        vocab_size=max(400, len(words)),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=300,
    )
    words_2, encoder_2 = t5()
    model = d.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        hidden_size=16,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    return d.HunyuanDiTPipeline(vae(), t.BertModel(config).eval(), words, model, d.DDPMScheduler(), None, None, False, encoder_2, words_2)


def sd3() -> Any:
    words, first = clip(projection=True)
    _, second = clip(projection=True)
    words_3, third = t5(32)
    model = d.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    return d.StableDiffusion3Pipeline(model, flow(), vae(shift_factor=0.0), first, words, second, words, third, words_3)


def flux() -> Any:
    (words, first), (words_2, second) = clip(), t5()
    model = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return d.FluxPipeline(flow(use_dynamic_shifting=True), vae(shift_factor=0.0), first, words, second, words_2, model)


def sana() -> Any:
    words, encoder = gemma()
    model = d.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=8,
        patch_size=1,
    )
    dc = d.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )
    return d.SanaPipeline(words, encoder, dc, model, flow())


def lumina2() -> Any:
    words, encoder = gemma()
    model = d.Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 128, 128),
        cap_feat_dim=16,
    )
    return d.Lumina2Pipeline(model, flow(), vae(shift_factor=0.0), encoder, words)


def auraflow() -> Any:
    words, encoder = t5(kind=t.UMT5EncoderModel, config=t.UMT5Config)
    model = d.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return d.AuraFlowPipeline(words, encoder, vae(), model, flow())


def chroma() -> Any:
    words, encoder = t5()
    model = d.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return d.ChromaPipeline(flow(), vae(shift_factor=0.0), encoder, words, model)
