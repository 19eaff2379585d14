"""Layers and bytes of published architectures, from their configs alone:  python benchmarks/architectures.py      → results/architectures.json

Bytes of the denoiser's file where every layer has the format that the heuristic names for a rate; tensors that stay are float16.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from results import keep

from sedaq.aq.plans.plan import file_bytes, tensor_specs
from sedaq.errors import InputError
from sedaq.models.unloaded import architecture
from sedaq.search.config import Budget
from sedaq.search.unmeasured import uniform_formats

RATES = (1.5, 2.0, 3.0, 4.0)
CONFIGS: dict[str, dict[str, Any]] = {
    "DiT-XL/2": {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "sample_size": 32,
    },
    "PixArt-α 512": {
        "_class_name": "PixArtTransformer2DModel",
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "sample_size": 64,
        "patch_size": 2,
        "cross_attention_dim": 1152,
        "caption_channels": 4096,
    },
    "Hunyuan-DiT": {
        "_class_name": "HunyuanDiT2DModel",
        "num_attention_heads": 16,
        "attention_head_dim": 88,
        "in_channels": 4,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "sample_size": 128,
        "hidden_size": 1408,
        "num_layers": 40,
        "mlp_ratio": 4.3637,
        "cross_attention_dim": 1024,
        "cross_attention_dim_t5": 2048,
        "pooled_projection_dim": 1024,
        "text_len": 77,
        "text_len_t5": 256,
    },
    "SD 1.5": {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "SDXL": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "SD3-medium": {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    "FLUX.1-dev": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
}


def main() -> None:
    rows = []
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(config))
            subject = architecture(path)
        sizes: dict[str, int | None] = {}
        for rate in RATES:
            try:
                formats, _ = uniform_formats(subject, Budget(bits=rate))
                sizes[f"{rate:g}"] = file_bytes(tensor_specs(subject, formats))
            except InputError:
                sizes[f"{rate:g}"] = None
        n_weights = sum(layer.n_weights for layer in subject.layers)
        rows.append({"model": name, "n_layers": len(subject.layers), "n_weights": n_weights, "size_bytes": sizes})
        print(rows[-1], flush=True)
    keep("architectures", "python benchmarks/architectures.py", rows)


if __name__ == "__main__":
    main()
