"""Tiny random parts of pipelines: tokenizers, text encoders, schedulers."""

from __future__ import annotations

from typing import Any

import diffusers as d
import transformers as t

PROMPTS = ("a red fox", "two boats at sea", "an old bridge")
_TEXT = [*PROMPTS, "a photo of a cat on a mat", "the quick brown fox jumps over the lazy dog"] * 4


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


def flow(**how: Any) -> Any:
    return d.FlowMatchEulerDiscreteScheduler(**how)
