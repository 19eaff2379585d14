"""Noise that depends on (seed, image index) alone, so that any batching, order or worker gives the same images."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch


def purpose_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose ("calibration", "probe", "verify", "tune", "evaluate"), so that no two share noise."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1, np.uint32)[0])


def image_generators(seed: int, start: int, n_images: int) -> list[torch.Generator]:
    """A CPU generator for each of the images start … start + n_images − 1."""
    states = (int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1) for index in range(start, start + n_images))
    return [torch.Generator().manual_seed(state) for state in states]


def initial_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal (len(generators), *shape), float32, each image drawn by its own generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def image_noise(seed: int, start: int, n_images: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal (n_images, *shape), float32."""
    return initial_noise(image_generators(seed, start, n_images), shape)
