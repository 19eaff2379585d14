"""Subjects of what diffusers saved: a pipeline, a bare denoiser, or the config of one alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..storage import read_json
from .adapters.denoiser import DEFAULT_STEPS, DenoiserAdapter
from .adapters.pipeline import PipelineAdapter
from .checks import check_finite, check_kinds, check_size, refuse_absent, refuse_missing, warn_of_made_up, warn_of_surplus
from .components import Components, denoisers_of
from .encoded_prompts import EncodedPrompts
from .folders import (
    DENOISER_COMPONENTS,
    SUBJECT_FILE,
    components_in,
    is_of_transformers,
    loaded_weights,
    read_config,
    stored_dtypes,
    without_variants,
)
from .layers import put_channels_last
from .manifest import verify
from .mapped import MappedTensors
from .sampling import Condition, dtype_of
from .subject import Subject

# aq/ knows how quantized layers are put into a module, and is above this floor: it enters its function when sedaq is imported.
restore: Callable[[nn.Module, Path], None] | None = None


def put_quantized(subject: Subject, folder: Path) -> Subject:
    """The subject with the quantized layers of a folder in the place of its own. Raises InputError where the folder holds none, or of another model."""
    if "quantization_config" not in read_config(folder / "config.json"):
        raise InputError(f"`weights` {folder}: holds no quantized layers; pass the folder that `sedaq apply` wrote")
    assert restore is not None
    verify(folder)
    restore(subject.denoiser, folder)
    return subject


def load_folder(
    folder: Path,
    device: str,
    prompts: Sequence[str] | None,
    exclude: Sequence[str],
    quantized: bool,
    components: Sequence[str] = (),
    dtype: str = "float32",
) -> Subject:
    """The subject of a pipeline's or a bare denoiser's folder."""
    if quantized:
        verify(folder)
    if (folder / "model_index.json").exists():
        return _load_pipeline(folder, device, prompts, exclude, quantized, components, dtype)
    if components:
        raise InputError(f"`components`: {folder} is no pipeline; leave `components` out")
    if (folder / "config.json").exists():
        return load_denoiser(folder, folder.resolve().name, device, exclude, quantized, dtype)
    raise InputError(
        f"{folder}: not a diffusers folder (neither model_index.json nor config.json in it); pass the folder that save_pretrained wrote"
    )


def diffusers_class(path: Path, base: str, remedy: str) -> Any:
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


def refuse_quantized(folder: Path, quantized: bool) -> bool:
    """Whether the denoiser in `folder` was quantized by sedaq."""
    is_quantized = "quantization_config" in read_config(folder / "config.json")
    if is_quantized and not quantized:
        raise InputError(f"{folder}: already quantized; pass the full-precision folder that it was made from")
    return is_quantized


def _from_pretrained(load_from: Callable[..., Any], folder: Path, variant: str = "", dtype: str = "float32") -> Any:
    """Load in float32 unless another dtype is named (few CPUs have a fast float16), with one line for what diffusers says at length."""
    try:
        return load_from(folder, torch_dtype=dtype_of(dtype), local_files_only=True, **({"variant": variant} if variant else {}))
    except ImportError as error:
        raise InputError(
            f"{folder}: needs a package that is not installed ({str(error).strip().splitlines()[0]}); text models need transformers"
        ) from error
    except Exception as error:  # of a dozen libraries, on whatever a damaged folder says
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{folder}: diffusers cannot load it ({lines[0]}); the folder is incomplete or damaged, save it again") from error


def _variant(folder: Path) -> str:
    chosen = loaded_weights(folder)
    return chosen[0] if chosen else ""


def load_denoiser(folder: Path, name: str, device: str, exclude: Sequence[str], quantized: bool = False, dtype: str = "float32") -> Subject:
    """The subject of a bare denoiser's folder, sampled by the scheduler whose config lies in it or beside it."""
    refuse_quantized(folder, quantized)
    model_class = diffusers_class(folder / "config.json", "ModelMixin", "model; pass a denoiser's folder")
    _refuse_unusual(model_class, folder)
    scheduler_folder = folder if (folder / "scheduler_config.json").exists() else folder.parent / "scheduler"
    path = scheduler_folder / "scheduler_config.json"
    if not path.exists():
        raise InputError(
            f"{folder}: a bare denoiser needs its scheduler_config.json beside config.json; copy it there, or pass the pipeline's folder"
        )
    scheduler_class = diffusers_class(path, "SchedulerMixin", "scheduler; copy the one that the model was trained with")
    if read_config(path).get("use_dynamic_shifting"):
        raise InputError(f"{path}: shifts timesteps by the size of images, which a pipeline tells it; pass the pipeline's folder")
    scheduler = _from_pretrained(lambda path, **_: scheduler_class.from_pretrained(path), scheduler_folder)
    denoiser = _from_pretrained(model_class.from_pretrained, folder, _variant(folder), dtype)
    refuse_missing(denoiser, folder)
    check_size(denoiser, folder / "config.json")
    if not quantized:
        check_kinds(denoiser, folder)
        warn_of_surplus(denoiser, folder)
    # In this layout a probe of mnist-unet takes 10.3 s on two cores instead of 12.7 s.
    denoiser = denoiser.to(device)
    put_channels_last(denoiser)
    known = read_json(folder / SUBJECT_FILE, "subject") if (folder / SUBJECT_FILE).exists() else class_conditions(denoiser)
    adapter = DenoiserAdapter(
        denoiser, scheduler, known["conditions"], known["null_condition"], known.get("steps", DEFAULT_STEPS), dtype_of(dtype)
    )
    return Subject(
        denoiser,
        sample=adapter,
        conditions=known["conditions"],
        name=name,
        exclude=exclude,
        folder=folder,
        stored_dtypes=stored_dtypes(folder),
        extractor=known.get("extractor"),
        mapped=_exact_weights({"": denoiser}, {"": folder}, dtype, quantized),
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


def class_conditions(denoiser: nn.Module) -> dict[str, Any]:
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
    folder: Path,
    device: str,
    prompts: Sequence[str] | None,
    exclude: Sequence[str],
    quantized: bool,
    components: Sequence[str],
    dtype: str,
) -> Subject:
    pipeline_class = diffusers_class(
        folder / "model_index.json", "DiffusionPipeline", "pipeline; pass the folder that save_pretrained wrote"
    )
    index = components_in(folder)
    _check_index(folder, index, components)
    refuse_absent(pipeline_class, index, folder)
    # Parts that are null belong to no folder; diffusers wants to be told of those that most pipelines have, such as Stable Diffusion 3's T5.
    absent = {name: None for name, entry in index.items() if entry == (None, None)}
    configs = {name: folder / name / "config.json" for name in index if name not in absent}
    done = [name for name, config in configs.items() if config.exists() and refuse_quantized(config.parent, quantized)]
    with without_variants(folder) as plain:
        load_from = functools.partial(pipeline_class.from_pretrained, plain, trust_remote_code=False, **absent)
        pipeline = _from_pretrained(lambda _, **how: load_from(**how), folder, dtype=dtype)
    modules = {name: module for name, module in pipeline.components.items() if isinstance(module, nn.Module)}
    names = tuple(components) or tuple(name for name in modules if name in done) or denoisers_of(modules)
    _check_components(folder, modules, names, done)
    pipeline = pipeline.to(device)
    encoders = _text_encoders(folder, modules, (*names, *done), dtype)
    known = read_json(folder / SUBJECT_FILE, "subject") if (folder / SUBJECT_FILE).exists() else {}
    conditions: Sequence[Condition] | None = class_conditions(modules[names[0]])["conditions"]
    if "prompt" in inspect.signature(pipeline.__call__).parameters:
        conditions = prompts or known.get("conditions")
    defaults: dict[str, Any] = {name: known[name] for name in ("steps", "guidance", "max_tokens", "batch_size") if name in known}
    several = len(names) > 1
    return Subject(
        Components({name: modules[name] for name in names}) if several else modules[names[0]],
        sample=PipelineAdapter(pipeline, conditions, defaults, dtype_of(dtype), encoders),
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
        mapped=_exact_weights(
            {f"{name}." if several else "": modules[name] for name in names},
            {f"{name}." if several else "": folder / name for name in names},
            dtype,
            quantized,
        ),
    )


def _check_index(folder: Path, index: Mapping[str, tuple[str | None, str | None]], components: Sequence[str]) -> None:
    """Raise InputError where folders of what model_index.json names are missing or not whole, or nothing in it could be quantized."""
    import diffusers

    present = [name for name, entry in index.items() if entry != (None, None)]
    for name in present:
        if not (folder / name).is_dir():
            raise InputError(
                f"{folder / name}: is named in model_index.json and missing; the folder is incomplete, save or download it again"
            )
    for name, (library, _) in index.items():  # an adapter's folder would have its base downloaded
        if library == "transformers" and loaded_weights(folder / name) and not (folder / name / "config.json").exists():
            raise InputError(f"{folder / name}: holds weights and no config.json; the folder is incomplete, save or download it again")
    for name, (library, kind) in index.items():
        if library == "diffusers" and not hasattr(diffusers, str(kind)):
            raise InputError(
                f"{folder}: its {name} is a {kind}, which diffusers {diffusers.__version__} cannot load by itself; hand it to from_pretrained in your own FILE.py, "
                "and pass the sedaq.Subject made there"
            )
    empty = next((name for name in DENOISER_COMPONENTS if index.get(name) == (None, None)), None)
    if empty and not components and not set(DENOISER_COMPONENTS) & set(present):
        raise InputError(
            f"{folder}: its {empty} is null in model_index.json, so there is nothing to quantize; pass a pipeline that has one"
        )


def _check_components(folder: Path, modules: Mapping[str, nn.Module], names: Sequence[str], done: Collection[str]) -> None:
    """Raise InputError for components that are not there, or not whole. names: those that are quantized; done: those that sedaq has quantized before."""
    for name in names:
        if name not in modules:
            raise InputError(f"`components` {name}: {folder} has no such module; choose of {', '.join(modules)}")
        refuse_missing(modules[name], folder / name)
    if not names:
        raise InputError(
            f"{folder}: none of its components is a denoiser, told the time; name `components`, or pass a sedaq.Subject with your own sample function"
        )
    for name, module in modules.items():
        if name not in done and loaded_weights(folder / name):
            for check in (warn_of_made_up,) if is_of_transformers(module) else (check_kinds, warn_of_surplus):
                check(module, folder / name)
        if name not in names:
            check_finite(f"{folder} {name}", module)


def _text_encoders(folder: Path, modules: Mapping[str, Any], taken: Collection[str], dtype: str) -> list[EncodedPrompts]:
    """Text encoders that are not quantized, so that what they say can be kept."""
    found = []
    for name, module in modules.items():
        if name.startswith("text_encoder") and name not in taken and is_of_transformers(module):
            how: dict[str, Any] = {"dtype": dtype_of(dtype), "variant": _variant(folder / name) or None, "local_files_only": True}
            found.append(EncodedPrompts(module, functools.partial(type(module).from_pretrained, folder / name, **how)))
    return found


def _exact_weights(modules: Mapping[str, nn.Module], folders: Mapping[str, Path], dtype: str, quantized: bool) -> MappedTensors | None:
    """Where layers are encoded from when memory holds them rounded. Raises InputError for files that cannot be read in parts."""
    if dtype == "float32" or quantized:
        return None
    mapped = MappedTensors(folders)
    lacking = [f"{prefix}{name}" for prefix, module in modules.items() for name in module.state_dict() if f"{prefix}{name}" not in mapped]
    if lacking:
        raise InputError(f"`dtype` {dtype}: the tensor {lacking[0]} has another name in its file; leave `dtype` out for this model")
    return mapped


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
