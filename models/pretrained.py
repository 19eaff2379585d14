"""Subjects of what diffusers saved: a pipeline, a bare denoiser, or the config of one alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ..errors import InputError
from ..storage import read_json
from .adapters.denoiser import DEFAULT_STEPS, DenoiserAdapter
from .adapters.pipeline import PipelineAdapter
from .components import Components, denoisers_of, is_denoiser
from .folders import DENOISER_COMPONENTS, SUBJECT_FILE, loaded_weights, read_config, stored_dtypes, weights_of
from .mapped import MappedTensors
from .sampling import Condition
from .subject import Subject

# aq/ knows how quantized layers are put into a module, and is above this floor: it enters its function when sedaq is imported.
restore: Callable[[nn.Module, Path], None] | None = None


def put_quantized(subject: Subject, folder: Path) -> Subject:
    """The subject with the quantized layers of a folder in the place of its own. Raises InputError where the folder holds none, or of another model."""
    if "quantization_config" not in read_config(folder / "config.json"):
        raise InputError(f"`weights` {folder}: holds no quantized layers; pass the folder that `sedaq apply` wrote")
    assert restore is not None
    restore(subject.denoiser, folder)
    return subject


def load_folder(
    folder: Path, device: str, prompts: Sequence[str] | None, exclude: Sequence[str], quantized: bool, components: Sequence[str] = ()
) -> Subject:
    """The subject of a pipeline's or a bare denoiser's folder."""
    if (folder / "model_index.json").exists():
        return _load_pipeline(folder, device, prompts, exclude, quantized, components)
    if components:
        raise InputError(f"`components`: {folder} is no pipeline; leave `components` out")
    if (folder / "config.json").exists():
        return load_denoiser(folder, folder.resolve().name, device, exclude, quantized)
    raise InputError(
        f"{folder}: not a diffusers folder (neither model_index.json nor config.json in it); pass the folder that save_pretrained wrote"
    )


def _diffusers_class(path: Path, base: str, remedy: str) -> Any:
    """The diffusers class that a config names, a subclass of `base`."""
    return _named_class(read_config(path), str(path), base, remedy)


def model_class_of(config: Mapping[str, Any], where: str) -> Any:
    """The class of a denoiser's config. Raises InputError, which names `where`, for one that diffusers does not have."""
    return _named_class(config, where, "ModelMixin", "model; install the version of diffusers that has it")


def _named_class(config: Mapping[str, Any], where: str, base: str, remedy: str) -> Any:
    import diffusers

    name = config.get("_class_name")
    found = getattr(diffusers, str(name), None)
    if not isinstance(found, type) or not issubclass(found, getattr(diffusers, base)):
        raise InputError(f"{where}: field '_class_name' is {name!r}, which is no diffusers {remedy}")
    return found


def _refuse_quantized(folder: Path, quantized: bool) -> bool:
    """Whether the denoiser in `folder` was quantized by sedaq."""
    is_quantized = "quantization_config" in read_config(folder / "config.json")
    if is_quantized and not quantized:
        raise InputError(f"{folder}: already quantized; pass the full-precision folder that it was made from")
    return is_quantized


def _from_pretrained(load_from: Callable[..., Any], folder: Path, variant: str = "") -> Any:
    """Load in float32 (CPUs have no fast float16), with one line for what diffusers says at length."""
    try:
        return load_from(folder, torch_dtype=torch.float32, local_files_only=True, **({"variant": variant} if variant else {}))
    except ImportError as error:
        raise InputError(
            f"{folder}: needs a package that is not installed ({str(error).strip().splitlines()[0]}); text models need transformers"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{folder}: diffusers cannot load it ({lines[0]}); the folder is incomplete or damaged, save it again") from error


def _variant(folder: Path) -> str:
    chosen = loaded_weights(folder)
    return chosen[0] if chosen else ""


def _refuse_missing(module: nn.Module, folder: Path) -> None:
    """Raise InputError where the weights lack tensors that the module has."""
    missing = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{folder}: its weights lack the tensor {missing[0]}{others}; the folder is incomplete, save or download it again")


def load_denoiser(folder: Path, name: str, device: str, exclude: Sequence[str], quantized: bool = False) -> Subject:
    """The subject of a bare denoiser's folder, sampled by the scheduler whose config lies in it or beside it."""
    _refuse_quantized(folder, quantized)
    model_class = _diffusers_class(folder / "config.json", "ModelMixin", "model; pass a denoiser's folder")
    _refuse_unusual(model_class, folder)
    scheduler_folder = folder if (folder / "scheduler_config.json").exists() else folder.parent / "scheduler"
    path = scheduler_folder / "scheduler_config.json"
    if not path.exists():
        raise InputError(
            f"{folder}: a bare denoiser needs its scheduler_config.json beside config.json; copy it there, or pass the pipeline's folder"
        )
    scheduler_class = _diffusers_class(path, "SchedulerMixin", "scheduler; copy the one that the model was trained with")
    if read_config(path).get("use_dynamic_shifting"):
        raise InputError(f"{path}: shifts timesteps by the size of images, which a pipeline tells it; pass the pipeline's folder")
    scheduler = _from_pretrained(lambda path, **_: scheduler_class.from_pretrained(path), scheduler_folder)
    denoiser = _from_pretrained(model_class.from_pretrained, folder, _variant(folder))
    _refuse_missing(denoiser, folder)
    # In this layout a probe of mnist-unet takes 10.3 s on two cores instead of 12.7 s.
    denoiser = denoiser.to(device, memory_format=torch.channels_last)
    if getattr(denoiser.config, "sample_size", None) is None:
        raise InputError(
            f"{folder / 'config.json'}: field 'sample_size' is missing or null, so the size of images is not known; pass the pipeline's folder"
        )

    known = read_json(folder / SUBJECT_FILE, "subject") if (folder / SUBJECT_FILE).exists() else _class_conditions(denoiser)
    adapter = DenoiserAdapter(denoiser, scheduler, known["conditions"], known["null_condition"], known.get("steps", DEFAULT_STEPS))
    return Subject(
        denoiser,
        sample=adapter,
        conditions=known["conditions"],
        name=name,
        exclude=exclude,
        folder=folder,
        stored_dtypes=stored_dtypes(folder),
        extractor=known.get("extractor"),
    )


def _refuse_unusual(model_class: type, folder: Path) -> None:
    """Raise InputError for a model that is no denoiser, or one that must be told more than an image, a timestep and a class."""
    parameters = dict(list(inspect.signature(model_class.forward).parameters.items())[1:])  # type: ignore[attr-defined]
    if not {"timestep", "timesteps", "t"} & parameters.keys():
        raise InputError(
            f"{folder}: {model_class.__name__} is no denoiser (it takes no timestep); pass the denoiser's or the pipeline's folder"
        )
    needed = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty][2:]
    if "encoder_hidden_states" in parameters and "class_labels" not in parameters:
        needed.append("encoder_hidden_states")
    if needed:
        raise InputError(
            f"{folder}: {model_class.__name__} is also asked with {needed[0]}, which a pipeline makes; pass the pipeline's folder"
        )


def _class_conditions(denoiser: nn.Module) -> dict[str, Any]:
    """All classes in turn, by the denoiser's config; none for an unconditional one."""
    config: Any = denoiser.config
    n_classes = getattr(config, "num_class_embeds", None)
    if n_classes:
        return {"conditions": list(range(n_classes)), "null_condition": None}
    n_classes = getattr(config, "num_embeds_ada_norm", None)
    if n_classes and getattr(config, "norm_type", "") == "ada_norm_zero":
        return {"conditions": list(range(n_classes)), "null_condition": n_classes}
    return {"conditions": None, "null_condition": None}


def _load_pipeline(
    folder: Path, device: str, prompts: Sequence[str] | None, exclude: Sequence[str], quantized: bool, components: Sequence[str]
) -> Subject:
    from diffusers import DiffusionPipeline

    index = read_config(folder / "model_index.json")
    present = [name for name, entry in index.items() if isinstance(entry, list) and entry != [None, None]]
    for name in present:
        if not (folder / name).is_dir():
            raise InputError(
                f"{folder / name}: is named in model_index.json and missing; the folder is incomplete, save or download it again"
            )
    empty = next((name for name in DENOISER_COMPONENTS if index.get(name) == [None, None]), None)
    if empty and not components and not set(DENOISER_COMPONENTS) & set(present):
        raise InputError(
            f"{folder}: its {empty} is null in model_index.json, so there is nothing to quantize; pass a pipeline that has one"
        )
    done = [name for name in present if (folder / name / "config.json").exists() and _refuse_quantized(folder / name, quantized)]
    weighty = [name for name in (*DENOISER_COMPONENTS, *present) if name in present and loaded_weights(folder / name)]
    # Parts that are null belong to no folder; diffusers wants to be told of those that most pipelines have, such as Stable Diffusion 3's T5.
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    load_from = functools.partial(DiffusionPipeline.from_pretrained, **absent)
    pipeline = _from_pretrained(load_from, folder, _variant(folder / weighty[0]) if weighty else "")
    modules = {name: module for name, module in pipeline.components.items() if isinstance(module, nn.Module)}
    names = tuple(components) or tuple(name for name in modules if name in done) or denoisers_of(modules)
    for name in names:
        if name not in modules:
            raise InputError(f"`components` {name}: {folder} has no such module; choose of {', '.join(modules)}")
        _refuse_missing(modules[name], folder / name)
    if not names:
        raise InputError(
            f"{folder}: none of its components is a denoiser, told the time; name `components`, or pass a sedaq.Subject with your own sample function"
        )
    pipeline = pipeline.to(device)
    known = read_json(folder / SUBJECT_FILE, "subject") if (folder / SUBJECT_FILE).exists() else {}
    conditions: Sequence[Condition] | None = _class_conditions(modules[names[0]])["conditions"]
    if "prompt" in inspect.signature(pipeline.__call__).parameters:
        conditions = prompts or known.get("conditions")
    defaults: dict[str, Any] = {name: known[name] for name in ("steps", "guidance", "max_tokens", "batch_size") if name in known}
    several = len(names) > 1
    return Subject(
        Components({name: modules[name] for name in names}) if several else modules[names[0]],
        sample=PipelineAdapter(pipeline, conditions, defaults),
        conditions=conditions,
        name=folder.resolve().name,
        exclude=exclude,
        folder=folder,
        components=names,
        stored_dtypes={
            f"{name}.{path}" if several else path: dtype
            for name in names
            for path, dtype in _dtypes_by_path(modules[name], stored_dtypes(folder / name)).items()
        },
        extractor=known.get("extractor"),
    )


def _dtypes_by_path(module: nn.Module, stored: dict[str, torch.dtype]) -> dict[str, torch.dtype]:
    """Dtypes by a module's own names: transformers may have loaded tensors under names with a beginning more or less than in the file."""
    names = module.state_dict().keys()
    others = {stored_name: dtype for stored_name, dtype in stored.items() if stored_name not in names}
    found = {name: dtype for name, dtype in stored.items() if name in names}
    for name in names - found.keys():
        dtype = next((d for other, d in others.items() if name.endswith(f".{other}") or other.endswith(f".{name}")), None)
        if dtype is not None:
            found[name] = dtype
    return found


# -- without reading weights --------------------------------------------------------------------------------------------------------------


def architecture(path: Path) -> Subject:
    """A denoiser of which only the config is read, on the meta device: it takes no memory, and can be inspected. Tensors count as float16.

    Args:
        path: config.json of a denoiser, its folder, or a pipeline's.

    Raises:
        InputError: for a config that diffusers makes no model of.
    """
    modules = _meta_modules(path, ()) if (path / "model_index.json").exists() else {"": _meta_model(path)}
    denoiser = _as_one(modules)
    stored = {name: torch.float16 for name, tensor in denoiser.state_dict().items() if tensor.is_floating_point()}
    name = type(next(iter(modules.values()))).__name__
    components = tuple(name for name in modules if name)
    return Subject(denoiser, sample=_never_sampled(path), name=name, components=components, stored_dtypes=stored)


def can_be_mapped(folder: Path, components: Sequence[str]) -> bool:
    """Whether `map_folder` has all that it needs: models of diffusers, and their weights in safetensors files."""
    if not (folder / "model_index.json").exists():
        return _all_safetensors(folder)
    index = read_config(folder / "model_index.json")
    theirs = [name for name, entry in index.items() if isinstance(entry, list) and entry[0] == "diffusers"]
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
    modules = _meta_modules(folder, components) if is_pipeline else {"": _meta_model(folder)}
    several = len(modules) > 1
    mapped = MappedTensors({f"{name}." if several else "": folder / name for name in modules})
    denoiser = _as_one(modules)
    lacking = [name for name in denoiser.state_dict() if name not in mapped]
    if lacking:
        raise InputError(f"{folder}: its weights lack the tensor {lacking[0]}; load the model with diffusers and save it again")
    known = read_json(folder / SUBJECT_FILE, "subject") if (folder / SUBJECT_FILE).exists() else {}
    conditions = known.get("conditions") or _class_conditions(next(iter(modules.values())))["conditions"]
    if (
        is_pipeline
        and "prompt" in inspect.signature(_diffusers_class(folder / "model_index.json", "DiffusionPipeline", "").__call__).parameters
    ):
        conditions = prompts or known.get("conditions")
    for name in modules:
        _refuse_quantized(folder / name, quantized=False)
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


def _meta_modules(folder: Path, components: Sequence[str]) -> dict[str, nn.Module]:
    """Those components of a pipeline that are named, or its denoisers, on the meta device."""
    index = read_config(folder / "model_index.json")
    found = {}
    for name in components or [name for name, entry in index.items() if isinstance(entry, list) and entry[0] == "diffusers"]:
        if not (folder / name / "config.json").exists():
            if components:
                raise InputError(f"`components` {name}: {folder} has no such model; choose of the components in its model_index.json")
            continue
        module = _meta_model(folder / name)
        if components or is_denoiser(module):
            found[name] = module
    if not found:
        raise InputError(f"{folder}: none of its components is a denoiser, told the time; name `components`")
    return found


def _meta_model(path: Path) -> nn.Module:
    file = path / "config.json" if path.is_dir() else path
    model_class = _diffusers_class(file, "ModelMixin", "model; pass a denoiser's config")
    try:
        with torch.device("meta"):
            model: nn.Module = model_class.from_config(
                {name: value for name, value in read_config(file).items() if name != "quantization_config"}
            )
            return model
    except (TypeError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{file}: diffusers cannot build it ({str(error).splitlines()[0]}); check the config") from error


def _never_sampled(path: Path) -> Callable[..., torch.Tensor]:
    def _sample(**_: Any) -> torch.Tensor:
        raise InputError(f"{path}: its weights were not loaded, so that nothing can be sampled; load the folder for that")

    return _sample
