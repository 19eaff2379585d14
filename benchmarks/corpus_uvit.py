"""U-ViT (Bao et al. 2023): a transformer whose time, class and image patches are all tokens, with long skip connections as a U-Net has them."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_2d_sincos_pos_embed, get_timestep_embedding
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, n_heads: int, *, skips: bool = False) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * width, width) if skips else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, n_heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], 2))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class UViT(ModelMixin, ConfigMixin):
    """Of `depth` blocks, an odd number: half of them, one in the middle, and as many that also see what the first half gave."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        patch_size: int = 4,
        in_channels: int = 1,
        width: int = 96,
        n_heads: int = 3,
        depth: int = 7,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(in_channels, width, patch_size, patch_size)})
        self.class_embedding = nn.Embedding(n_classes, width)
        # From noise it takes thousands of steps to learn where patches are.
        places = get_2d_sincos_pos_embed(width, sample_size // patch_size, output_type="pt").float()
        self.pos_embed = nn.Parameter(torch.cat([torch.zeros(2, width), places])[None])
        self.in_blocks = nn.ModuleList(Block(width, n_heads) for _ in range(depth // 2))
        self.mid_block = Block(width, n_heads)
        self.out_blocks = nn.ModuleList(Block(width, n_heads, skips=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, patch_size**2 * in_channels)
        self.conv_out = nn.Conv2d(in_channels, in_channels, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """What is predicted, of the shape of `sample` (n, C, H, W)."""
        patches = self.patch_embed["proj"](sample)
        time = get_timestep_embedding(timestep, self.config.width).to(sample.dtype)
        x = torch.cat([time[:, None], self.class_embedding(class_labels)[:, None], patches.flatten(2).transpose(1, 2)], 1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            skips.append(x := block(x))
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.proj_out(self.norm(x[:, 2:]))
        return self.conv_out(F.fold(x.transpose(1, 2), sample.shape[2:], self.config.patch_size, stride=self.config.patch_size))
