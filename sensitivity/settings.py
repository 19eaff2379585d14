"""The settings of a run, which its numbers depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..aq.plans.menu import RATES
from ..errors import InputError
from ..models.calibration import SPREAD
from ..models.loading import load
from ..models.sampling import SamplingConfig
from ..models.subject import Subject
from .metrics.reference import REFERENCE_IMAGES

TEN_STEPS = SamplingConfig(steps=10)


@dataclass(frozen=True)
class Settings:
    """Everything that changes a run's numbers. A run keeps the settings that it began with.

    Args:
        seed: of every random choice.
        n_images: images a probe.
        sampling: of probes, and of all else that does not say another number of steps.
        extractor: embedded, inception[:FILE] or transformers:FOLDER; the subject's own by default.
        reference: folder of images, .npz, or statistics file to compare with; by default the shipped training statistics, else full-precision
            images made with other noise.
        exclude: leave layers alone whose path matches this glob.
        components: of a pipeline, what is quantized, such as unet, text_encoder, vae; its denoisers by default.
        rates: total bits per weight that menus have a format for.
        effort: of the encoder: draft, fast, full or seconds a layer.
        reference_images: sampled as a reference where none is given.
        calibration_images: images whose activations make the calibration matrices; 16 to 64 by default, fewer of large images, which have many tokens.
        calibration_steps: of sampling those images, a fifth fewer or more for parts of them; as many as for probes by default, and at least 20.
        weighting: of the calibration's timesteps: uniform, balanced, early, late.
        old_batch_size: of a run begun by version 0.1.0, whose calibration has it in its fingerprint.
    """

    seed: int = 0
    n_images: int = 512
    sampling: SamplingConfig = TEN_STEPS
    extractor: str | None = None
    reference: str | None = None
    exclude: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    rates: tuple[float, ...] = RATES
    effort: str = "fast"
    calibration_images: int | None = None
    calibration_steps: int | None = None
    reference_images: int = REFERENCE_IMAGES
    weighting: str = "uniform"
    old_batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("calibration_images", "calibration_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"`{name}`: got {value}; give a whole number of 1 or more")
        if not self.rates or not all(1 <= rate <= 16 for rate in self.rates):
            raise InputError(f"`rates`: got {', '.join(f'{rate:g}' for rate in self.rates) or 'none'}; give numbers from 1 to 16")

    def load(self, subject: str | Subject, device: str) -> Subject:
        """What a SUBJECT argument names, as a run with these settings has it."""
        sampling = self.sampling
        return load(
            subject, prompts=sampling.prompt_lines, exclude=self.exclude, components=self.components, device=device, dtype=sampling.dtype
        )

    @property
    def steps(self) -> int | None:
        """Sampling steps of a probe."""
        return self.sampling.steps

    @property
    def calibration(self) -> dict[str, Any]:
        """What calibration matrices depend on besides the subject."""
        steps = self.calibration_steps or self.steps
        own: dict[str, Any] = {"seed": self.seed, "n_images": self.calibration_images, "steps": steps, "weighting": self.weighting}
        own |= {"spread": SPREAD} if self.calibration_steps else {}
        old = {} if self.old_batch_size is None else {"batch_size": self.old_batch_size}
        return own | self.sampling.identity | old

    def to_dict(self) -> dict[str, Any]:
        """What run.json's `settings` field holds: sampling settings beside the others; those that version 0.1.0 had not, where they are given."""
        sampling = self.sampling
        newer = {"calibration_steps": self.calibration_steps} | {
            name: getattr(sampling, name)
            for name in ("height", "width", "n_frames", "max_tokens", "negative_prompts", "input_images", "input_masks", "dtype")
        }
        return {
            "seed": self.seed,
            "n_images": self.n_images,
            "steps": sampling.steps,
            "extractor": self.extractor,
            "reference": self.reference,
            "guidance": sampling.guidance,
            "prompts": _listed(sampling.prompts),
            "batch_size": self.old_batch_size,
            "exclude": list(self.exclude),
            "rates": list(self.rates),
            "effort": self.effort,
            "calibration_images": self.calibration_images,
            "weighting": self.weighting,
            **({"reference_images": self.reference_images} if self.reference_images != REFERENCE_IMAGES else {}),
            **({"components": list(self.components)} if self.components else {}),
            **{name: _listed(value) for name, value in newer.items() if value is not None},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], batch_size: int | None = None) -> Settings:
        """The inverse of `to_dict`, with a batch size to sample with."""
        old = values.get("batch_size")
        known = {field.name for field in fields(cls)} & values.keys()
        own: dict[str, Any] = {name: tuple(value) if isinstance(value := values[name], list) else value for name in known}
        return cls(**own, sampling=SamplingConfig.from_dict({**values, "batch_size": batch_size or old}), old_batch_size=old)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
