"""A user's own images in the replay buffer, beside the model's trajectories."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from ...errors import InputError
from ...models.calls import FLOAT, answer_of
from ...models.noise import purpose_seed
from ...models.subject import Subject
from ...models.trace import ReplayBuffer

BATCH = 64


def with_images(buffer: ReplayBuffer, subject: Subject, images: torch.Tensor, seed: int) -> ReplayBuffer:
    """The buffer, and behind it every call once more with x_t made of an image: noised to the call's timestep, its condition kept, answered by the
    teacher. Distillation asks for no match of image and condition.

    Args:
        images: (n, C, H, W) in [0, 1]; drawn with replacement. Pipelines with a VAE encode them.

    Raises:
        InputError: a scheduler without alphas_cumprod, or that scales what the denoiser gets; images or latents of another shape than the denoiser's.
    """
    scheduler: Any = subject.scheduler
    if not hasattr(scheduler, "alphas_cumprod") or getattr(scheduler, "init_noise_sigma", 1.0) != 1.0:
        raise InputError(
            f"`tune_images`: the scheduler of {subject.name} ({type(scheduler).__name__}) cannot noise images to a timestep as the denoiser gets them; "
            "leave the images out"
        )
    rng = torch.Generator().manual_seed(purpose_seed(seed, "tune images"))
    clean = subject.adapter.encode(images)
    name = _latent_argument(subject, buffer)
    if clean.shape[1:] != buffer.tensors[name].shape[1:]:
        raise InputError(
            f"`tune_images`: they are {tuple(clean.shape[1:])} where the denoiser of {subject.name} takes {tuple(buffer.tensors[name].shape[1:])}; "
            "leave the images out"
        )
    chosen = clean[torch.randint(len(clean), (len(buffer),), generator=rng)]
    noise = torch.randn(chosen.shape, generator=rng)
    tensors = dict(buffer.tensors)
    # By the definition: what a scheduler's own add_noise does may depend on the steps that it was last set to.
    alphas = scheduler.alphas_cumprod.float().cpu()[buffer.timesteps.long()].reshape(-1, *[1] * (chosen.ndim - 1))
    tensors[name] = (alphas.sqrt() * chosen + (1 - alphas).sqrt() * noise).to(FLOAT)
    device = next(subject.denoiser.parameters()).device
    noised = ReplayBuffer(tensors, buffer.template, buffer.call_lengths)
    answers = []
    with torch.inference_mode():
        for rows in torch.arange(len(buffer)).split(BATCH):
            call, _ = noised.batch(rows, device)
            answers.append(answer_of(subject.denoiser(**call)).cpu().to(FLOAT))
    tensors["output"] = torch.cat(answers)
    both = {key: torch.cat([buffer.tensors[key], tensor]) for key, tensor in tensors.items()}
    return ReplayBuffer(both, buffer.template, buffer.call_lengths * 2)


def _latent_argument(subject: Subject, buffer: ReplayBuffer) -> str:
    """The denoiser's first argument."""
    name = next(iter(inspect.signature(subject.denoiser.forward).parameters))
    if name not in buffer.tensors:
        raise InputError(
            f"`tune_images`: the first argument of {subject.name}'s denoiser, {name!r}, is not what it denoises; leave the images out"
        )
    return name
