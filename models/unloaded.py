"""Subjects without weights in memory: of a config alone, or of a folder whose weights stay in their files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..storage import read_json
from .checks import check_weights
from .components import Components, is_denoiser
from .folders import SUBJECT_FILE, components_in, loaded_weights, read_config, stored_dtypes, weights_of
from .mapped import MappedTensors
from .pretrained import class_conditions, diffusers_class, refuse_quantized
from .subject import Subject


def architecture(path: Path, components: Sequence[str] = ()) -> Subject:
    """Denoisers of which only the configs are read, on the meta device: they take no memory, and can be inspected. Tensors count as float16.

    Args:
        path: config.json of a denoiser, its folder, or a pipeline's folder or model_index.json, beside which the configs of its denoisers are enough.
        components: of a pipeline, instead of its denoisers.

    Raises:
        InputError: for a config that diffusers makes no model of.
    """
    folder = path.parent if path.name == "model_index.json" else path
    is_pipeline = (folder / "model_index.json").exists()
    if components and not is_pipeline:
        raise InputError(f"`components`: {path} is no pipeline; leave `components` out")
    modules = _meta_modules(folder, components or _named_denoisers(folder)) if is_pipeline else {"": _meta_model(path)}
    denoiser = _as_one(modules)
    stored = {name: torch.float16 for name, tensor in denoiser.state_dict().items() if tensor.is_floating_point()}
    name = type(next(iter(modules.values()))).__name__
    components = tuple(name for name in modules if name)
    return Subject(denoiser, sample=_never_sampled(path), name=name, components=components, stored_dtypes=stored)


def can_be_mapped(folder: Path, components: Sequence[str]) -> bool:
    """Whether `map_folder` has all that it needs: models of diffusers, and their weights in safetensors files."""
    if not (folder / "model_index.json").exists():
        return _all_safetensors(folder)
    theirs = [name for name, (library, _) in components_in(folder).items() if library == "diffusers"]
    wanted = components or [name for name in theirs if loaded_weights(folder / name)]
    return set(wanted) <= set(theirs) and all(_all_safetensors(folder / name) for name in wanted)


def _all_safetensors(folder: Path) -> bool:
    paths = weights_of(folder)
    return bool(paths) and all(path.suffix == ".safetensors" for path in paths)


def map_folder(folder: Path, prompts: Sequence[str] | None, exclude: Sequence[str], components: Sequence[str]) -> Subject:
    """The subject of a folder whose weights stay in their files: its layers can be listed and encoded, and nothing sampled.

    Raises:
        InputError: components that diffusers does not make, weights that are no safetensors, or not those of the config.
    """
    is_pipeline = (folder / "model_index.json").exists()
    if components and not is_pipeline:
        raise InputError(f"`components`: {folder} is no pipeline; leave `components` out")
    modules = _meta_modules(folder, components) if is_pipeline else {"": _meta_model(folder)}
    several = len(modules) > 1
    mapped = MappedTensors({f"{name}." if several else "": folder / name for name in modules})
    denoiser = _as_one(modules)
    for name, module in modules.items():
        check_weights(module, folder / name)
    known = read_json(folder / SUBJECT_FILE, "subject") if (folder / SUBJECT_FILE).exists() else {}
    conditions = known.get("conditions") or class_conditions(next(iter(modules.values())))["conditions"]
    if (
        is_pipeline
        and "prompt" in inspect.signature(diffusers_class(folder / "model_index.json", "DiffusionPipeline", "").__call__).parameters
    ):
        conditions = prompts or known.get("conditions")
    for name in modules:
        refuse_quantized(folder / name, quantized=False)
    return Subject(
        denoiser,
        sample=_never_sampled(folder),
        conditions=conditions,
        name=folder.resolve().name,
        exclude=exclude,
        folder=folder,
        components=tuple(name for name in modules if name),
        stored_dtypes={
            f"{name}.{path}" if several else path: dtype for name in modules for path, dtype in stored_dtypes(folder / name).items()
        },
        extractor=known.get("extractor"),
        mapped=mapped,
    )


def _as_one(modules: Mapping[str, nn.Module]) -> nn.Module:
    return next(iter(modules.values())) if len(modules) == 1 else Components(dict(modules))


def _named_denoisers(folder: Path) -> tuple[str, ...]:
    """The denoisers of a pipeline, by the classes in its model_index.json."""
    import diffusers

    entries = components_in(folder).items()
    found = tuple(name for name, (library, kind) in entries if library == "diffusers" and is_denoiser(getattr(diffusers, str(kind), None)))
    lacking = next((name for name in found if not (folder / name / "config.json").exists()), None)
    if lacking:
        raise InputError(f"{folder / lacking}: has no config.json, and model_index.json names it as a denoiser; put it there")
    return found


def _meta_modules(folder: Path, components: Sequence[str]) -> dict[str, nn.Module]:
    """Those components of a pipeline that are named, or its denoisers, on the meta device."""
    named = components_in(folder)
    found = {}
    for name in components or [name for name, (library, _) in named.items() if library == "diffusers"]:
        if name not in named or not (folder / name / "config.json").exists():
            if components:
                raise InputError(f"`components` {name}: {folder} has no such model; choose of the components in its model_index.json")
            if not (folder / name).is_dir() or loaded_weights(folder / name):
                raise InputError(
                    f"{folder / name}: is named in model_index.json, and its config.json is missing; the folder is incomplete, save or download it again"
                )
            continue
        module = _meta_model(folder / name)
        if components or is_denoiser(module):
            found[name] = module
    if not found:
        raise InputError(f"{folder}: none of its components is a denoiser, told the time; name `components`")
    return found


def _meta_model(path: Path) -> nn.Module:
    file = path / "config.json" if path.is_dir() else path
    model_class = diffusers_class(file, "ModelMixin", "model; pass a denoiser's config")
    try:
        with torch.device("meta"):
            model: nn.Module = model_class.from_config(
                {name: value for name, value in read_config(file).items() if name != "quantization_config"}
            )
            return model
    except InputError:
        raise
    except Exception as error:  # whatever an architecture raises on numbers that it cannot have
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{file}: diffusers cannot build it ({said[0]}); check the config") from error


def _never_sampled(path: Path) -> Callable[..., torch.Tensor]:
    def _sample(**_: Any) -> torch.Tensor:
        raise InputError(f"{path}: its weights were not loaded, so that nothing can be sampled; load the folder for that")

    return _sample
