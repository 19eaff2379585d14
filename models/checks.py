"""What is looked at in a model before any work: a model that is damaged is named at once, and not after hours."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import InputError
from .folders import tensor_headers
from .hooks import hooking
from .sampling import SamplingConfig

if TYPE_CHECKING:
    from .subject import Subject

log = logging.getLogger("sedaq")
SLACK = 1e-3  # by which rounding may bring images out of 0 … 1


def check_weights(module: nn.Module, folder: Path) -> None:
    """Raise InputError where the files of a model that stays in them lack tensors that it has, or hold them in another shape or as whole numbers."""
    stored = tensor_headers(folder)
    expected = module.state_dict()
    _refuse([name for name in expected if name not in stored], folder, "load the model with diffusers and save it again")
    for name, tensor in expected.items():
        shape = stored[name][1]
        if shape != tuple(tensor.shape):
            raise InputError(
                f"{folder}: its tensor {name} has shape {shape} where the config means {tuple(tensor.shape)}; take both from one model"
            )
    check_kinds(module, folder)
    warn_of_surplus(module, folder)


def check_kinds(module: nn.Module, folder: Path) -> None:
    """Raise InputError where files hold whole numbers for the weights of a layer, which a library would take for such."""
    expected = module.state_dict()
    for name, (dtype, _) in tensor_headers(folder).items():
        if name in expected and dtype is not None and dtype.is_floating_point != expected[name].is_floating_point():
            raise InputError(
                f"{folder}: its tensor {name} is stored as {dtype}, not as the numbers of its layer; get the model in full precision"
            )


def warn_of_surplus(module: nn.Module, folder: Path) -> None:
    """Warn of tensors that a model of diffusers does not have, which are not loaded: its config may be that of a smaller one."""
    stored, known = tensor_headers(folder), module.state_dict()
    rename = getattr(module, "_fix_state_dict_keys_on_load", None)
    if rename is None:
        return
    rename(stored)  # names of earlier versions, which diffusers reads
    ignored = module._keys_to_ignore_on_load_unexpected or ()
    surplus = [name for name in stored if name not in known and not any(re.search(pattern, name) for pattern in ignored)]  # type: ignore[union-attr]
    if surplus:
        others = f" and {len(surplus) - 1} more" if len(surplus) > 1 else ""
        log.warning(
            "%s: its weights hold the tensor %s%s, which its config has no place for; take both from one model", folder, surplus[0], others
        )


def refuse_missing(module: nn.Module, folder: Path) -> None:
    """Raise InputError where a component that was loaded has tensors without values."""
    _refuse(
        [name for name, tensor in module.state_dict().items() if tensor.is_meta],
        folder,
        "the folder is incomplete, save or download it again",
    )


def _refuse(missing: list[str], folder: Path, remedy: str) -> None:
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{folder}: its weights lack the tensor {missing[0]}{others}; {remedy}")


def warn_of_made_up(module: nn.Module, folder: Path) -> None:
    """Warn of tensors of a text encoder that its files do not hold: transformers draws them at random. Names may have a beginning more or less there."""
    stored = tensor_headers(folder)
    state = module.state_dict()
    found = {name for name in state if name in stored or any(other.endswith(f".{name}") or name.endswith(f".{other}") for other in stored)}
    places = {state[name].data_ptr() for name in found}
    made_up = [name for name, tensor in state.items() if name not in found and tensor.data_ptr() not in places]
    if made_up:
        log.warning("%s: its weights lack %s of %d tensors, such as %s; is the folder whole?", folder, len(made_up), len(state), made_up[0])


def check_finite(who: str, module: nn.Module) -> None:
    """Raise InputError for NaN in any tensor, and for infinity in a parameter; a mask may hold it."""
    parameters = dict(module.named_parameters())
    for name, tensor in module.state_dict().items():
        if not tensor.is_meta:
            refuse_not_finite(who, name, tensor, infinite=name not in parameters)


def refuse_not_finite(who: str, name: str, tensor: torch.Tensor, *, infinite: bool = False) -> None:
    """Raise InputError for NaN or infinity in a tensor; where `infinite`, for NaN alone."""
    if not tensor.is_floating_point():
        return
    values = tensor.float() if tensor.itemsize < 2 else tensor
    if torch.isnan(values).any() or not (infinite or torch.isfinite(values).all()):
        raise InputError(f"{who}: its tensor {name} holds NaN or infinity; repair the model")


def check_size(denoiser: nn.Module, path: Path) -> None:
    """Raise InputError for a bare denoiser whose config, at `path`, does not say how large square or flat images are."""
    size = getattr(denoiser.config, "sample_size", None)
    if size is None:
        raise InputError(f"{path}: field 'sample_size' is missing or null, so the size of images is not known; pass the pipeline's folder")
    sides = size if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(f"{path}: field 'sample_size' is {size!r}; it must be a whole number above 0, or two")
    flat = any(isinstance(module, (nn.Conv1d, nn.Conv3d)) for module in denoiser.modules())
    if flat:
        raise InputError(f"{path.parent}: makes sound or videos, of which a bare denoiser does not say enough; pass the pipeline's folder")


def refuse_absent(pipeline_class: Any, components: Mapping[str, tuple[str | None, str | None]], folder: Path) -> None:
    """Raise InputError for a component that is null in model_index.json and that the pipeline cannot do without."""
    parameters = inspect.signature(pipeline_class.__init__).parameters
    needed = {"vae", "scheduler"} | (set() if "text_encoder_2" in parameters else {"text_encoder", "tokenizer"})
    for name in sorted(needed - set(pipeline_class._optional_components)):
        if name in parameters and components.get(name) == (None, None):
            raise InputError(
                f"{folder}: its {name} is null in model_index.json, and a {pipeline_class.__name__} needs one; pass a pipeline that has it"
            )


def check_images(who: str, images: torch.Tensor, start: int, *, may_overflow: bool) -> None:
    """Raise InputError for sampled images that are no floating-point numbers from 0 to 1; it names the first.

    Args:
        start: index of the first of them.
        may_overflow: whether NaN and infinity pass, for a plan may make a model overflow.
    """
    is_float = images.is_floating_point()
    low, high = images.float().aminmax()  # where there is NaN, both are
    if is_float and low >= -SLACK and high <= 1 + SLACK:
        return
    for index, image in enumerate(images.float(), start):
        finite = image[image.isfinite()]
        if len(finite) < image.numel() and not may_overflow:
            remedy = "repair the sampler or the model, compute in float32, or give a quantized model more bits"
            raise InputError(f"{who}: its image {index} holds NaN or infinity; {remedy}")
        if not is_float or (len(finite) and not -SLACK <= finite.min() <= finite.max() <= 1 + SLACK):
            seen = f"{str(images.dtype).removeprefix('torch.')} from {finite.min():g} to {finite.max():g}"
            raise InputError(f"{who}: its images are {seen} (image {index}); they must be floating-point numbers from 0 to 1")


def check_sampler(subject: Subject, sampling: SamplingConfig) -> None:
    """Raise InputError for a sampler that nothing could be measured with: Subject.check."""
    who, calls = f"subject {subject.name}: ", []
    few = {layer.name: (lambda *_: calls.append(1)) for layer in subject.layers[:: max(1, len(subject.layers) // 32)]}
    with hooking(subject.denoiser, before=few):
        both = subject.sample(sampling, seed=0, n_images=2)
    if few and not calls:
        raise InputError(f"{who}sampling did not call its layers; its sample function must call the denoiser")
    second, other = subject.sample(sampling, seed=0, start=1, n_images=1), subject.sample(sampling, seed=1, n_images=1)
    apart = (both[0] - both[1]).abs().mean()
    if second.shape[1:] != both.shape[1:] or (second[0] - both[1]).abs().mean() > 1e-3 + 0.1 * apart:
        raise InputError(
            f"{who}image 1 of seed 0 came out differently when it was sampled again, by itself; its noise must depend on (seed, index) alone"
        )
    if torch.equal(other[0], both[0]):
        raise InputError(f"{who}image 0 is the same with another seed; its noise must depend on (seed, index)")
