"""A Subject: what is quantized of a model, how to sample it, and what is known about its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..storage import fingerprint, tensor_fingerprint
from .adapters.base import Adapter, FunctionAdapter
from .checks import check_images, check_sampler, refuse_not_finite
from .components import Components, essentials, is_denoiser, whole_config
from .layers import Layer, find_layers, find_ties, tied_layers
from .mapped import MappedTensors
from .sampling import Condition, SamplingConfig


class Subject:
    """What is to be quantized.

    Args:
        denoiser: any module; its Linear and Conv layers are the eligible ones. Several components of a pipeline are one module `Components`.
        sample: an Adapter, or a function sample(*, seed, start, n_images, steps=None, **settings) → images (n, C, H, W) in [0, 1]. It must
            call `denoiser`, and image i's noise must depend on (seed, i) alone. `settings` are fields of SamplingConfig that were given.
        conditions: labels or prompts; image i has conditions[i mod len].
        name: how plans and reports call it.
        exclude: globs of layer paths to leave alone.
        folder: the diffusers folder that it came from, if any.
        components: the names of what is quantized in the pipeline of `folder`; none where the folder is a bare denoiser.
        stored_dtypes: dtype on disk of each tensor of the denoiser's state dict, where it differs from the one in memory.
        extractor: name of the feature extractor to use when none is asked for.
        mapped: the tensors of the state dict in their files, where `denoiser` is on the meta device, or computes in another dtype than float32.

    Attributes:
        source: FILE.py:FUNCTION, by which `load` made it; "" for others.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        sample: Adapter | Callable[..., torch.Tensor],
        conditions: Sequence[Condition] | None = None,
        name: str,
        exclude: Sequence[str] = (),
        folder: Path | None = None,
        components: Sequence[str] = (),
        stored_dtypes: dict[str, torch.dtype] | None = None,
        extractor: str | None = None,
        mapped: MappedTensors | None = None,
    ) -> None:
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.mapped = mapped
        self.adapter = sample if isinstance(sample, Adapter) else FunctionAdapter(sample)
        self.conditions, self.name = list(conditions) if conditions else None, name
        self.folder, self.components, self.extractor = folder, tuple(components), extractor
        self.exclude = tuple(exclude)
        self.stored_dtypes = stored_dtypes or {}
        self.source = ""
        self._shapes: dict[str, tuple[int, ...]] = {}

    def sample(
        self, sampling: SamplingConfig | None = None, *, seed: int, start: int = 0, n_images: int, may_overflow: bool = False
    ) -> torch.Tensor:
        """Images start … start + n_images − 1 of `seed`, (n_images, C, H, W) in [0, 1]; videos (n_images, frames, C, H, W).

        Args:
            sampling: settings; the subject's own where None.
            may_overflow: whether images may hold NaN and infinity, for a plan may make the model overflow.

        Raises:
            InputError: for prompts that the subject was not loaded with, settings that it does not take, a sample function that returns
                something else, and images that are no numbers from 0 to 1.
        """
        sampling = sampling or SamplingConfig()
        if sampling.prompts is not None and sampling.prompt_lines != self.conditions:
            raise InputError(f"`prompts`: subject {self.name} has other conditions; load it with these prompts")
        computed = None if self.adapter.dtype is None else str(self.adapter.dtype).removeprefix("torch.")
        if sampling.dtype not in (None, computed):
            remedy = f"load it in {sampling.dtype}" if computed else "leave `dtype` out"
            raise InputError(f"`dtype`: subject {self.name} computes in {computed or 'what its sample function chooses'}; {remedy}")
        images = self.adapter.sample(sampling, seed=seed, start=start, n_images=n_images)
        if not isinstance(images, torch.Tensor):
            raise InputError(f"subject {self.name}: its sample function gave a {type(images).__name__}; it must give a torch.Tensor")
        if images.ndim not in (4, 5) or len(images) != n_images:
            raise InputError(
                f"subject {self.name}: its sample function gave shape {tuple(images.shape)}; it must give ({n_images}, C, H, W), or ({n_images}, frames, C, H, W)"
            )
        check_images(f"subject {self.name}", images, start, may_overflow=may_overflow)
        return images

    def check(self, sampling: SamplingConfig, calibration_steps: int | None = None) -> None:
        """Sample a few images for two steps, before work that would be in vain.

        Raises:
            InputError: more steps than timesteps of training, numbers that are not from 0 to 1, images that depend on more or on less than the
                seed and their index, so that nothing could be paired, and a sampler that does not call the layers.
        """
        trained = self.trained_timesteps
        for name, steps in (("steps", sampling.steps), ("calibration_steps", calibration_steps)):
            if trained is not None and steps is not None and steps > trained:
                raise InputError(f"`{name}`: got {steps}; {self.name} was trained on {trained} timesteps, give no more")
        check_sampler(self, replace(sampling, steps=2))

    @property
    def trained_timesteps(self) -> int | None:
        """How many timesteps its scheduler has, where it says so."""
        return getattr(getattr(self.scheduler, "config", None), "num_train_timesteps", None)

    @cached_property
    def layers(self) -> list[Layer]:
        """The eligible layers, in module order."""
        return find_layers(self.denoiser, self.exclude)

    @cached_property
    def parts(self) -> dict[str, Subject]:
        """Each component as a subject of its own, by what its layers' paths begin with here: "" where there is one."""
        if not isinstance(self.denoiser, Components):
            return {"": self}
        return {f"{name}.": self._part(name) for name in self.components}

    def _part(self, name: str) -> Subject:
        def own(values: dict[str, Any]) -> dict[str, Any]:
            return {path.removeprefix(f"{name}."): value for path, value in values.items() if path.startswith(f"{name}.")}

        part = Subject(
            self.denoiser[name],  # type: ignore[index]
            sample=self.adapter,
            conditions=self.conditions,
            name=f"{self.name} {name}",
            exclude=self.exclude,
            folder=self.folder,
            components=(name,),
            stored_dtypes=own(self.stored_dtypes),
            extractor=self.extractor,
            mapped=None if self.mapped is None else self.mapped.part(f"{name}."),
        )
        part.layers = [replace(layer, name=path) for path, layer in own({layer.name: layer for layer in self.layers}).items()]
        return part

    @cached_property
    def prefixes(self) -> list[str]:
        """What the layers' paths of each component begin with: keys of `parts`."""
        return list(self.parts)

    @cached_property
    def named_components(self) -> tuple[str, ...]:
        """`components`, where `load` would not choose them unasked of most pipelines."""
        return self.components if len(self.components) > 1 or not is_denoiser(self.denoiser) else ()

    @property
    def denoisers(self) -> dict[str, Subject]:
        """Those of the parts that are asked at every step, whose calls can be recorded and asked again."""
        parts = self.parts
        return parts if len(parts) == 1 else {prefix: part for prefix, part in parts.items() if is_denoiser(part.denoiser)}

    @cached_property
    def tensor_specs(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Stored dtype and shape of every tensor in the denoiser's state dict; of one with several names under the first."""
        return {
            name: (self.stored_dtypes.get(name, tensor.dtype), tuple(tensor.shape))
            for name, tensor in self.denoiser.state_dict().items()
            if name not in self.ties
        }

    @cached_property
    def ties(self) -> dict[str, str]:
        """Names of tensors that are stored under another name: find_ties."""
        return find_ties(self.denoiser)

    @property
    def tied_layers(self) -> dict[str, str]:
        """Paths of modules that have their weight from a layer, and that layer's path."""
        return tied_layers(self.ties, {layer.name for layer in self.layers})

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over configuration, conditions and the weights as they were when this was first read."""
        return self._fingerprint_with(self.conditions, essentials)

    @cached_property
    def _weights_fingerprint(self) -> str:
        if self.mapped is not None:
            return self.mapped.fingerprint(sorted(self.denoiser.state_dict()))
        return tensor_fingerprint(sorted(self.denoiser.state_dict().items()))

    @cached_property
    def model_fingerprint(self) -> str:
        """The same without prompts, which are no part of a model: plans hold for any."""
        return self._fingerprint_with(None, essentials) if self._is_prompted else self.fingerprint

    @cached_property
    def earlier_fingerprints(self) -> tuple[str, ...]:
        """Fingerprints that plans and runs of earlier versions may have of it, with all of its configuration in them."""
        return self._fingerprint_with(self.conditions, whole_config), self._fingerprint_with(None, whole_config)

    def adopt(self, fingerprint: str) -> bool:
        """Whether `fingerprint` is of this subject. It is called by that name from now on, if an earlier version gave it."""
        whole, without_prompts = self.earlier_fingerprints
        if fingerprint == whole:
            self.fingerprint, self.model_fingerprint = whole, without_prompts if self._is_prompted else whole
        return fingerprint == self.fingerprint

    @property
    def _is_prompted(self) -> bool:
        return bool(self.conditions) and isinstance(self.conditions[0], str)  # type: ignore[index]

    def _fingerprint_with(self, conditions: list[Condition] | None, config_of: Callable[[nn.Module], dict[str, Any]]) -> str:
        modules = list(self.denoiser.values()) if isinstance(self.denoiser, Components) else [self.denoiser]
        kinds: list[Any] = [entry for module in modules for entry in (type(module).__name__, config_of(module))]
        return fingerprint([*kinds, conditions, list(self.exclude), self._weights_fingerprint])

    @property
    def cycle(self) -> int:
        """Number of conditions; image i has condition i mod cycle."""
        return len(self.conditions) if self.conditions else 1

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W), of one frame of a video, where nothing is said of the sampling."""
        return self.shape_of(SamplingConfig())

    def shape_of(self, sampling: SamplingConfig) -> tuple[int, ...]:
        """(C, H, W) of images sampled so, of one frame of a video."""
        return self.sample_shape_of(sampling)[-3:]

    def sample_shape_of(self, sampling: SamplingConfig) -> tuple[int, ...]:
        """(C, H, W), of videos (frames, C, H, W), found out by sampling one for two steps where the adapter does not say it."""
        if self.adapter.image_shape is not None:
            return self.adapter.image_shape
        key = fingerprint(sampling.identity)
        if key not in self._shapes:
            # not for one step, which the schedulers of some pipelines cannot make
            self._shapes[key] = tuple(self.sample(replace(sampling, steps=2), seed=0, n_images=1).shape[1:])
        return self._shapes[key]

    @property
    def scheduler(self) -> Any:
        """The diffusers scheduler that samples it, None where the adapter has none to show."""
        return self.adapter.scheduler

    def layer(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise InputError(f"subject {self.name} has no layer {name!r}; `sedaq inspect` lists them")

    def weight(self, name: str) -> torch.Tensor:
        """The full-precision weight of layer `name`, float32. Raises InputError for NaN or infinity in one that is read from its file."""
        if self.mapped is None:
            return self.denoiser.get_submodule(name).weight.detach().float()  # type: ignore[operator, union-attr]
        weight = self.mapped[f"{name}.weight"].float()
        if not torch.isfinite(weight).all():
            raise InputError(
                f"layer {name}: its weight holds NaN or infinity; repair the model, or leave the layer out with `exclude` {name}"
            )
        return weight

    def weight_fingerprint(self, name: str) -> str:
        """tensor_fingerprint of a layer's full-precision weight."""
        return tensor_fingerprint([(name, self.weight(name))])

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the denoiser's state dict. Raises InputError for NaN or infinity in one that is read from its file."""
        if self.mapped is None:
            found: torch.Tensor = self.denoiser.state_dict()[name]
            return found
        tensor = self.mapped[name]
        refuse_not_finite(self.name, name, tensor)
        return tensor

    @contextmanager
    def weights_replaced(self, weights: dict[str, torch.Tensor]) -> Iterator[None]:
        """Run the block with other dense weights in the layers named, and put the old ones back."""
        parameters = {name: self.denoiser.get_submodule(name).weight for name in weights}
        originals = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = torch.empty_like(parameter).copy_(weights[name])  # type: ignore[union-attr, arg-type]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = originals[name]  # type: ignore[union-attr]
