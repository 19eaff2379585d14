"""Sampling of any diffusers pipeline."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import InputError
from ..encoded_prompts import EncodedPrompts
from ..images import opened_images
from ..noise import image_generators
from ..sampling import Condition, SamplingConfig, conditions_of, split_images
from .base import Adapter, check_call, refuse_others

# Settings by the names of a pipeline's arguments.
ARGUMENTS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "height": "height",
    "width": "width",
    "n_frames": "num_frames",
    "max_tokens": "max_sequence_length",
    "negative_prompts": "negative_prompt",
    "input_images": "image",
    "input_masks": "mask_image",
}
_OF_EACH_IMAGE = ("negative_prompts", "input_images", "input_masks")
_FFT = 1024  # samples of a window of sound


class PipelineAdapter(Adapter):
    """Samples any diffusers pipeline that takes prompts, class labels, images or a batch size, with one generator an image.

    Args:
        conditions: prompts or labels; image i has conditions[i mod len].
        defaults: settings by their names in SamplingConfig, where a sampling does not say them; the pipeline's own by default.
        dtype: what it computes in.
        encoders: text encoders whose weights are let go once they were asked.
    """

    def __init__(
        self,
        pipeline: Any,
        conditions: Sequence[Condition] | None,
        defaults: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        encoders: Sequence[EncodedPrompts] = (),
    ) -> None:
        self.pipeline, self.conditions, self.defaults = pipeline, conditions, dict(defaults or {})
        self.parameters = inspect.signature(pipeline.__call__).parameters
        self.scheduler = getattr(pipeline, "scheduler", None)
        self.dtype, self.encoders = dtype, encoders
        self.batch_size = self.defaults.pop("batch_size", self.batch_size)
        steps = self.parameters.get(ARGUMENTS["steps"])
        self.default_steps = self.defaults.get("steps") or (None if steps is None else steps.default)
        pipeline.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def sample(self, sampling: SamplingConfig, *, seed: int, start: int, n_images: int) -> torch.Tensor:
        known = {name for name, argument in ARGUMENTS.items() if argument in self.parameters}
        refuse_others(sampling, {*known, "batch_size"}, type(self.pipeline).__name__)
        settings = {**self.defaults, **sampling.given, **({"steps": sampling.steps} if sampling.steps else {})}
        fixed = {ARGUMENTS[name]: settings[name] for name in known if settings.get(name) is not None and name not in _OF_EACH_IMAGE}
        if "use_resolution_binning" in self.parameters and sampling.height and sampling.width:
            fixed["use_resolution_binning"] = False  # the size that was asked for, not the nearest that the model was trained on
        inputs = self._inputs(sampling)
        images = []
        for first, count in split_images(start, n_images, sampling.batch_size or self.batch_size):
            own: dict[str, Any] = {"generator": image_generators(seed, first, count), **self._conditions(first, count)}
            own |= {argument: [values[i % len(values)] for i in range(first, first + count)] for argument, values in inputs.items()}
            images.append(pictures(self._called(**own, **fixed), type(self.pipeline).__name__))
        for encoder in self.encoders:
            encoder.release()
        return torch.cat(images)

    def _called(self, **own: Any) -> Any:
        arguments = {**own, "output_type": "np"}
        check_call(
            self.pipeline.__call__, arguments, type(self.pipeline).__name__, "wrap it in a sedaq.Subject with your own sample function"
        )
        try:
            return self.pipeline(**arguments)
        except (TypeError, ValueError) as error:  # diffusers checks what it was asked for, in lines that name its own arguments
            if traceback.extract_tb(error.__traceback__)[-1].name == "check_inputs":
                raise InputError(f"{type(self.pipeline).__name__}: {str(error).splitlines()[0]}") from error
            raise

    def _inputs(self, sampling: SamplingConfig) -> dict[str, list[Any]]:
        """What each image has of its own beside its condition, by the pipeline's arguments; image i has entry i modulo their number."""
        found: dict[str, list[Any]] = {}
        if sampling.negative_prompts is not None:
            found["negative_prompt"] = list(sampling.negative_prompt_lines or ())
        for name in ("input_images", "input_masks"):
            path, argument = getattr(sampling, name), ARGUMENTS[name]
            if path is not None:
                found[argument] = opened_images(name, Path(path))
            elif argument in self.parameters:
                what = "images" if name == "input_images" else "masks"
                raise InputError(f"`{name}`: {type(self.pipeline).__name__} starts from {what}; give a folder of them")
        return found

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
        if "image" in self.parameters:
            return {}
        raise InputError(
            f"{type(self.pipeline).__name__} takes neither prompts, class labels, images nor a batch size; wrap it in a sedaq.Subject with your own sample function"
        )

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        vae = getattr(self.pipeline, "vae", None)
        return super().encode(images) if vae is None else encode_latents(vae, images)


# -- outputs -----------------------------------------------------------------------------------------------------------------------------


def pictures(output: Any, who: str) -> torch.Tensor:
    """What a pipeline made, as tensors in [0, 1]: images (n, C, H, W), videos (n, frames, C, H, W), sound as spectrograms (n, 1, bands, time).

    Raises InputError for a pipeline that makes none of these.
    """
    kinds: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "images": lambda x: x.movedim(-1, -3),
        "frames": lambda x: x.movedim(-1, -3),
        "audios": spectrograms,
    }
    for name, of in kinds.items():
        made = getattr(output, name, None)
        if made is not None:
            return of(torch.from_numpy(np.stack(made) if isinstance(made, list) else np.asarray(made)).float())
    raise InputError(
        f"{who} makes {', '.join(output.keys())}, no images, videos or sound; pass the pipeline that ends in images, or a sedaq.Subject with your own sample function"
    )


def spectrograms(sound: torch.Tensor) -> torch.Tensor:
    """Sound (n, channels, samples) → (n, 1, bands, time): decibels between −100 and 0 of full scale, as 0 to 1."""
    mono = sound.mean(1)
    window = torch.hann_window(min(_FFT, mono.shape[1]))
    spectrum = torch.stft(mono, len(window), hop_length=max(1, len(window) // 4), window=window, return_complex=True)
    power = (spectrum.abs() / (window.sum() / 2)).square()
    return (1 + (10 / 100) * power.clamp(min=1e-10).log10()).clamp(0, 1).unsqueeze(1)


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
