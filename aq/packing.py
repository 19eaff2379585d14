"""Codes of B bits in exactly B bits each, least significant bit first, one stream for the whole weight."""

from __future__ import annotations

import math

import numpy as np
import torch


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (any shape, integers below 2^bits) → uint8 (ceil(n·bits/8),)."""
    values = codes.detach().cpu().numpy().astype(np.uint16).reshape(-1, 1)
    stream = (values >> np.arange(bits, dtype=np.uint16)) & 1
    return torch.from_numpy(np.packbits(stream.astype(np.uint8).reshape(-1), bitorder="little"))


def unpack(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `pack`: codes of the given shape, uint8 up to 8 bits (the same memory at exactly 8), int16 up to 15."""
    if bits == 8:
        return packed.reshape(shape)
    n_codes, dtype = math.prod(shape), torch.uint8 if bits < 8 else torch.int16
    stream = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    values = stream.reshape(-1)[: n_codes * bits].reshape(n_codes, bits).to(dtype) << torch.arange(bits, dtype=dtype, device=packed.device)
    return values.sum(1, dtype=dtype).reshape(shape)
