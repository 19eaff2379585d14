"""Samplers: functions sample(*, seed, start, n_images, steps=None, **settings) → images (n, C, H, W) in [0, 1]."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..progress import track
from .noise import image_generators, initial_noise

Sampler = Callable[..., torch.Tensor]
Condition = int | str
DEFAULT_STEPS = 20


def conditions_of(conditions: Sequence[Condition] | None, start: int, n_images: int) -> list[Condition] | None:
    """Image i's condition is conditions[i mod len]."""
    return [conditions[i % len(conditions)] for i in range(start, start + n_images)] if conditions else None


def _batches(start: int, n_images: int, batch_size: int) -> list[tuple[int, int]]:
    return [(first, min(batch_size, start + n_images - first)) for first in range(start, start + n_images, batch_size)]


class DenoiserSampler:
    """Samples a bare denoiser (sample, timestep, class_labels=None) with a diffusers scheduler.

    Images are what the scheduler's last step gives, from [-1, 1] to [0, 1]. Guidance w combines the outputs with the class and with
    `null_condition` as null + w·(class − null) (Ho & Salimans 2022).
    """

    def __init__(
        self, denoiser: nn.Module, scheduler: Any, conditions: Sequence[int] | None, null_condition: int | None, default_steps: int
    ) -> None:
        config: Any = denoiser.config
        size = config.sample_size if isinstance(config.sample_size, (list, tuple)) else (config.sample_size, config.sample_size)
        self.image_shape = (config.in_channels, *size)
        self.denoiser, self.scheduler = denoiser, scheduler
        self.conditions, self.null_condition, self.default_steps = conditions, null_condition, default_steps
        self.step_draws_noise = "generator" in inspect.signature(scheduler.step).parameters

    @torch.inference_mode()
    def __call__(
        self, *, seed: int, start: int, n_images: int, steps: int | None = None, guidance: float | None = None, batch_size: int = 64
    ) -> torch.Tensor:
        steps = steps or self.default_steps
        device = next(self.denoiser.parameters()).device
        images = []
        for first, count in _batches(start, n_images, batch_size):
            generators = image_generators(seed, first, count)
            x = initial_noise(generators, self.image_shape).to(device)
            # Ancestral samplers draw noise at every step; each image goes on with its own generator.
            draws = {"generator": generators} if self.step_draws_noise else {}
            classes = conditions_of(self.conditions, first, count)
            labels = None if classes is None else torch.tensor(classes, device=device)
            self.scheduler.set_timesteps(steps)
            x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
            for t in self.scheduler.timesteps.to(device):
                output = self._output(self.scheduler.scale_model_input(x, t), t, labels, guidance)
                x = self.scheduler.step(output, t, x, **draws).prev_sample
            images.append((x / 2 + 0.5).clamp(0, 1).float().cpu())
        return torch.cat(images)

    def _output(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, guidance: float | None) -> torch.Tensor:
        times = t.expand(len(x))
        if labels is None:
            return self._channels(self.denoiser(x, times).sample)
        if guidance is None or guidance == 1:
            return self._channels(self.denoiser(x, times, class_labels=labels).sample)
        if self.null_condition is None:
            raise InputError("`guidance`: this denoiser has no null class; leave `guidance` out")
        null = torch.full_like(labels, self.null_condition)
        both = self.denoiser(torch.cat([x, x]), torch.cat([times, times]), class_labels=torch.cat([null, labels])).sample
        without, with_class = self._channels(both).chunk(2)
        return without + guidance * (with_class - without)

    def _channels(self, output: torch.Tensor) -> torch.Tensor:
        """The mean where the model also predicts a variance (twice the channels)."""
        return output[:, : self.image_shape[0]]


class PipelineSampler:
    """Samples any diffusers pipeline that takes prompts, class labels or a batch size, one generator an image."""

    def __init__(self, pipeline: Any, conditions: Sequence[Condition] | None) -> None:
        self.pipeline, self.conditions = pipeline, conditions
        self.parameters = inspect.signature(pipeline.__call__).parameters
        self.scheduler = getattr(pipeline, "scheduler", None)
        pipeline.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def __call__(
        self, *, seed: int, start: int, n_images: int, steps: int | None = None, guidance: float | None = None, batch_size: int = 4
    ) -> torch.Tensor:
        images = []
        for first, count in _batches(start, n_images, batch_size):
            arguments: dict[str, Any] = {"generator": image_generators(seed, first, count), "output_type": "np"}
            arguments.update(self._conditions(first, count))
            if steps is not None:
                arguments["num_inference_steps"] = steps
            if guidance is not None:
                if "guidance_scale" not in self.parameters:
                    raise InputError(f"`guidance`: {type(self.pipeline).__name__} takes no guidance; leave `guidance` out")
                arguments["guidance_scale"] = guidance
            images.append(torch.from_numpy(self.pipeline(**arguments).images).permute(0, 3, 1, 2).float())
        return torch.cat(images)

    def _conditions(self, first: int, count: int) -> dict[str, Any]:
        conditions = conditions_of(self.conditions, first, count)
        if "prompt" in self.parameters:
            if conditions is None:
                raise InputError(f"{type(self.pipeline).__name__} needs prompts; give them by `prompts`")
            return {"prompt": conditions}
        if "class_labels" in self.parameters:
            return {"class_labels": conditions}
        if "batch_size" in self.parameters:
            return {"batch_size": count}
        raise InputError(
            f"{type(self.pipeline).__name__} takes neither prompts, class labels nor a batch size; wrap it in a sedaq.Subject with your own sample function"
        )


def sample_in_chunks(
    sample: Sampler, description: str, *, seed: int, n_images: int, start: int = 0, chunk: int = 256, **settings: Any
) -> torch.Tensor:
    """Images of one long sampling, with a progress record after every `chunk` of them."""
    chunks = _batches(start, n_images, chunk)
    return torch.cat(
        [
            sample(seed=seed, start=first, n_images=count, **settings)
            for first, count in track(chunks, description, cost=lambda item: item[1])
        ]
    )
