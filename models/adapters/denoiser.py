"""Sampling of a bare denoiser with a diffusers scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ..noise import image_generators, initial_noise
from ..sampling import SamplingConfig, conditions_of, split_images
from .base import Adapter, refuse_others

DEFAULT_STEPS = 20


class DenoiserAdapter(Adapter):
    """Samples a bare denoiser (sample, timestep, class_labels=None) with a diffusers scheduler.

    Images are what the scheduler's last step gives, from [-1, 1] to [0, 1]. Guidance w combines the outputs with the class and with
    `null_condition` as null + w·(class − null) (Ho & Salimans 2022).
    """

    batch_size = 64

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Any,
        conditions: Sequence[int] | None,
        null_condition: int | None,
        default_steps: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config: Any = denoiser.config
        size = config.sample_size if isinstance(config.sample_size, (list, tuple)) else (config.sample_size, config.sample_size)
        self.image_shape: tuple[int, ...] = (config.in_channels, *size)
        self.denoiser, self.scheduler = denoiser, scheduler
        self.dtype: torch.dtype = dtype
        self.conditions, self.null_condition, self.default_steps = conditions, null_condition, default_steps
        # Flow matching works on the image as it is, and its schedulers say nothing of it.
        self.scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
        self.step_draws_noise = "generator" in inspect.signature(scheduler.step).parameters

    @torch.inference_mode()
    def sample(self, sampling: SamplingConfig, *, seed: int, start: int, n_images: int) -> torch.Tensor:
        refuse_others(sampling, ("guidance", "batch_size"), "a bare denoiser")
        guidance = None if sampling.guidance == 1 else sampling.guidance
        if guidance is not None and (self.null_condition is None or not self.conditions):
            raise InputError("`guidance`: this denoiser has no null class; leave `guidance` out")
        device = next(self.denoiser.parameters()).device
        images = []
        for first, count in split_images(start, n_images, sampling.batch_size or self.batch_size):
            generators = image_generators(seed, first, count)
            x = initial_noise(generators, self.image_shape).to(device)
            # Ancestral samplers draw noise at every step; each image goes on with its own generator.
            draws = {"generator": generators} if self.step_draws_noise else {}
            classes = conditions_of(self.conditions, first, count)
            labels = None if classes is None else torch.tensor(classes, device=device)
            self.scheduler.set_timesteps(sampling.steps or self.default_steps)
            x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
            for t in self.scheduler.timesteps.to(device):
                output = self._output(self.scaled(x, t), t, labels, guidance)
                x = self.scheduler.step(output, t, x, **draws).prev_sample
            images.append((x / 2 + 0.5).clamp(0, 1).float().cpu())
        return torch.cat(images)

    def _output(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, guidance: float | None) -> torch.Tensor:
        x, times = x.to(self.dtype), t.expand(len(x))
        if labels is None:
            return self._channels(self.denoiser(x, times).sample)
        if guidance is None:
            return self._channels(self.denoiser(x, times, class_labels=labels).sample)
        null = torch.full_like(labels, self.null_condition)  # type: ignore[arg-type]
        both = self.denoiser(torch.cat([x, x]), torch.cat([times, times]), class_labels=torch.cat([null, labels])).sample
        without, with_class = self._channels(both).chunk(2)
        return without + guidance * (with_class - without)

    def _channels(self, output: torch.Tensor) -> torch.Tensor:
        """The mean where the model also predicts a variance (twice the channels)."""
        return output[:, : self.image_shape[0]].float()
