"""Tiny random pipelines of many families, built as diffusers builds them, saved and loaded like the real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers as d
import torch
import transformers as t

PROMPTS = ("a red fox", "two boats at sea", "an old bridge")
_TEXT = [*PROMPTS, "a photo of a cat on a mat", "the quick brown fox jumps over the lazy dog"] * 4


@dataclass(frozen=True)
class Family:
    """How a pipeline of it is built, and what its sampling needs."""

    build: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)
    prompted: bool = True
    pictures: tuple[int, ...] = ()  # height and width of the input images that it starts from


# -- text --------------------------------------------------------------------------------------------------------------------------------


def tokenizer(kind: Any, length: int = 16) -> Any:
    return kind(model_max_length=length).train_new_from_iterator(_TEXT, vocab_size=300)


def clip(width: int = 16, *, projection: bool = False) -> tuple[Any, Any]:
    words = tokenizer(t.CLIPTokenizer)
    config = t.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return words, (t.CLIPTextModelWithProjection if projection else t.CLIPTextModel)(config).eval()


def t5(width: int = 16, *, kind: Any = t.T5EncoderModel, config: Any = t.T5Config) -> tuple[Any, Any]:
    words = tokenizer(t.T5Tokenizer)
    made = config(vocab_size=len(words) + 200, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    return words, kind(made).eval()


def gemma(width: int = 16) -> tuple[Any, Any]:
    words = tokenizer(t.GemmaTokenizer)
    config = t.Gemma2Config(
        vocab_size=len(words) + 10,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return words, t.Gemma2Model(config).eval()


def vae(channels: int = 4, *, images: int = 3, levels: int = 2, **others: Any) -> Any:
    return d.AutoencoderKL(
        in_channels=images,
        out_channels=images,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **others,
    )


def flow(**how: Any) -> Any:
    return d.FlowMatchEulerDiscreteScheduler(**how)


# -- U-Nets ------------------------------------------------------------------------------------------------------------------------------


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


# -- transformers ------------------------------------------------------------------------------------------------------------------------


def dit() -> Any:
    model = d.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=4,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    return d.DiTPipeline(model, vae(), d.DDIMScheduler())


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


# -- videos and sound --------------------------------------------------------------------------------------------------------------------


def wan(*, experts: bool = False) -> Any:
    words, encoder = t5(kind=t.UMT5EncoderModel, config=t.UMT5Config)

    def expert() -> Any:
        return d.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )

    codec = d.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True])
    second = {"transformer_2": expert(), "boundary_ratio": 0.5} if experts else {}
    return d.WanPipeline(
        words, encoder, codec, d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), expert(), **second
    )


def ltx() -> Any:
    words, encoder = t5()
    model = d.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    codec = d.AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return d.LTXPipeline(flow(), codec, encoder, words, model)


def audio() -> Any:
    words, encoder = t5()
    model = d.StableAudioDiTModel(
        sample_size=8,
        in_channels=3,
        num_layers=2,
        attention_head_dim=4,
        num_key_value_attention_heads=2,
        num_attention_heads=4,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    codec = d.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=400,
    )
    projection = d.pipelines.stable_audio.StableAudioProjectionModel(text_encoder_dim=16, conditioning_dim=4, min_value=0, max_value=32)
    return d.StableAudioPipeline(codec, encoder, projection, words, model, d.EDMDPMSolverMultistepScheduler())


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
