"""Sampling of any diffusers pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ...errors import InputError
from ..noise import image_generators
from ..sampling import Condition, SamplingConfig, conditions_of, split_images
from .base import Adapter, refuse_others

BATCH_SIZE = 4
# Settings by the names of a pipeline's arguments.
ARGUMENTS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "height": "height",
    "width": "width",
    "n_frames": "num_frames",
    "negative_prompts": "negative_prompt",
}


class PipelineAdapter(Adapter):
    """Samples any diffusers pipeline that takes prompts, class labels or a batch size, with one generator an image.

    Args:
        conditions: prompts or labels; image i has conditions[i mod len].
    """

    def __init__(self, pipeline: Any, conditions: Sequence[Condition] | None) -> None:
        self.pipeline, self.conditions = pipeline, conditions
        self.parameters = inspect.signature(pipeline.__call__).parameters
        self.scheduler = getattr(pipeline, "scheduler", None)
        pipeline.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def sample(self, sampling: SamplingConfig, *, seed: int, start: int, n_images: int) -> torch.Tensor:
        known = {name for name, argument in ARGUMENTS.items() if argument in self.parameters}
        refuse_others(sampling, {*known, "batch_size"}, type(self.pipeline).__name__)
        settings = {"steps": sampling.steps, **sampling.given}
        fixed = {ARGUMENTS[name]: settings[name] for name in known if settings.get(name) is not None}
        negatives = fixed.pop("negative_prompt", None)
        images = []
        for first, count in split_images(start, n_images, sampling.batch_size or BATCH_SIZE):
            own: dict[str, Any] = {"generator": image_generators(seed, first, count), **self._conditions(first, count)}
            if negatives is not None:
                own["negative_prompt"] = conditions_of(negatives, first, count)
            images.append(torch.from_numpy(self.pipeline(**own, **fixed, output_type="np").images).permute(0, 3, 1, 2).float())
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

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        vae = getattr(self.pipeline, "vae", None)
        return super().encode(images) if vae is None else encode_latents(vae, images)


def encode_latents(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Means of the latents of images (n, C, H, W) in [0, 1], shifted and scaled as the denoiser has them, float32.

    Raises:
        InputError: for a VAE without `encode` or a scaling factor.
    """
    if not hasattr(vae, "encode") or getattr(vae.config, "scaling_factor", None) is None:
        raise InputError(f"`tune_images`: the {type(vae).__name__} does not encode images as the denoiser wants them; leave the images out")
    parameter = next(vae.parameters())
    with torch.inference_mode():
        distributions = (vae.encode((2 * some - 1).to(parameter)).latent_dist for some in images.split(8))
        parts = [distribution.mean.float().cpu() for distribution in distributions]
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    found: torch.Tensor = (torch.cat(parts) - shift) * vae.config.scaling_factor
    return found
