"""Tuning of several components: one denoiser after the other, each against its own answers in full precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import InputError
from ...models.loading import in_float32
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...models.trace import NeverCalledError
from ..activations.quantizer import ActivationQuantizers
from ..encoding import Encoding
from .settings import TuneConfig
from .tune import tune
from .tuned import Tuned


def tune_components(
    subject: Subject,
    encodings: Mapping[str, Encoding],
    settings: TuneConfig,
    *,
    inputs: ActivationQuantizers | None = None,
    images: torch.Tensor | None = None,
    folder: Path | None = None,
    buffer_folder: Path | None = None,
    keep_in: Path | None = None,
    sampling: SamplingConfig | None = None,
) -> dict[str, Tuned]:
    """`tune` of every denoiser among the subject's components, by what its layers' paths begin with: "" where there is one component.

    Text encoders and autoencoders stay as they were encoded: what they should answer is not asked at every step.
    A subject that was loaded in 16 bits is loaded once more, in float32.

    Raises:
        InputError: as `tune`; own images for several denoisers, which see them at different times.
    """
    subject, sampling = in_float32(subject), replace(sampling or SamplingConfig(), dtype=None)
    denoisers = subject.denoisers
    if images is not None and len(subject.parts) > 1:
        raise InputError("`tune_images`: they teach a single denoiser; leave them out where several components are quantized")
    shared: dict[str, Any] = {"images": images, "sampling": sampling, "keep_in": keep_in}
    found = {}
    for prefix, part in denoisers.items():
        own = {name.removeprefix(prefix): encoding for name, encoding in encodings.items() if name.startswith(prefix)}
        folders = (None if path is None else path / prefix.rstrip(".") for path in (folder, buffer_folder))
        rounded = inputs.of_component(prefix) if inputs and prefix else inputs
        kept, buffers = folders
        try:
            found[prefix] = tune(part, own, settings, inputs=rounded, folder=kept, buffer_folder=buffers, **shared)
        except NeverCalledError:
            if not prefix:
                raise
            found[prefix] = Tuned(own, {}, inputs=rounded, ending="it is not called in this way of sampling, and stays as it was encoded")
    return found


def together(parts: Mapping[str, Tuned], encodings: Mapping[str, Encoding], inputs: ActivationQuantizers | None) -> Tuned:
    """What tuning made of all components, under their full paths; those that were not tuned are as in `encodings`."""
    if list(parts) == [""]:
        return parts[""]
    tuned = {f"{prefix}{name}": encoding for prefix, part in parts.items() for name, encoding in part.encodings.items()}
    others = {f"{prefix}{name}": tensor for prefix, part in parts.items() for name, tensor in part.others.items()}
    return Tuned({name: tuned.get(name, encoding) for name, encoding in encodings.items()}, others, inputs=inputs)
