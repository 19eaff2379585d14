"""From a SUBJECT argument to a Subject."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import InputError
from ..storage import SAFETENSORS_DTYPES, read_json
from .adapters.denoiser import DEFAULT_STEPS, DenoiserAdapter
from .adapters.pipeline import PipelineAdapter
from .sampling import Condition
from .subject import Subject

SHIPPED_FOLDER = Path(__file__).parent / "shipped"
SHIPPED = ("mnist-dit", "mnist-unet")
DENOISER_COMPONENTS = ("transformer", "unet", "prior", "decoder")
# What a bare denoiser's own config cannot say: {conditions, null_condition, extractor, steps}. sedaq writes it beside the weights.
SUBJECT_FILE = "sedaq_subject.json"


def load(
    subject: str | Path | Subject,
    *,
    prompts: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    device: str = "cpu",
    quantized: bool = False,
) -> Subject:
    """The subject that the argument names.

    Args:
        subject: a shipped name, a local diffusers folder (pipeline or bare denoiser), a quantized folder, a hub id, or FILE.py:FUNCTION.
        prompts: conditions of a pipeline that takes prompts.
        exclude: globs of layers to leave alone.
        quantized: whether a folder that sedaq wrote is acceptable (to sample it; it can't be quantized again).

    Raises:
        InputError: naming what was not understood or found, and what to pass instead.
    """
    if isinstance(subject, Subject):
        if not set(exclude) <= set(subject.exclude) or (prompts and list(prompts) != subject.conditions):
            raise InputError(
                f"subject {subject.name}: was made in Python, so prompts and globs to exclude belong into its Subject(conditions=…, exclude=…)"
            )
        return subject
    check_device(device)
    text = str(subject)
    if text in SHIPPED:
        loaded = _load_denoiser(SHIPPED_FOLDER / text, text, device, exclude)
    elif ".py:" in text:
        loaded = _load_function(text, exclude)
    elif Path(text).is_dir():
        loaded = _load_folder(Path(text), device, prompts, exclude, quantized)
    else:
        loaded = _load_folder(_download(text), device, prompts, exclude, quantized)
    if prompts and loaded.conditions != list(prompts):
        raise InputError(f"`prompts`: {text} takes no prompts; leave `prompts` out")
    if not quantized:
        loaded.layers  # noqa: B018  finds NaN in weights now, before any work
    return loaded


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"`device` {device}: {str(error).splitlines()[0]}; pass cpu, or a device that this torch has") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file; the folder is damaged, save it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: has no field '_class_name'; the folder is damaged, save it again")
    return config


def _diffusers_class(path: Path, base: str, remedy: str) -> Any:
    """The diffusers class that a config names, a subclass of `base`."""
    import diffusers

    name = _read_config(path).get("_class_name")
    found = getattr(diffusers, str(name), None)
    if not isinstance(found, type) or not issubclass(found, getattr(diffusers, base)):
        raise InputError(f"{path}: field '_class_name' is {name!r}, which is no diffusers {remedy}")
    return found


def _load_folder(folder: Path, device: str, prompts: Sequence[str] | None, exclude: Sequence[str], quantized: bool) -> Subject:
    if (folder / "model_index.json").exists():
        return _load_pipeline(folder, device, prompts, exclude, quantized)
    if (folder / "config.json").exists():
        return _load_denoiser(folder, folder.resolve().name, device, exclude, quantized)
    raise InputError(
        f"{folder}: not a diffusers folder (neither model_index.json nor config.json in it); pass the folder that save_pretrained wrote"
    )


def _refuse_quantized(folder: Path, quantized: bool) -> bool:
    """Whether the denoiser in `folder` was quantized by sedaq."""
    is_quantized = "quantization_config" in _read_config(folder / "config.json")
    if is_quantized and not quantized:
        raise InputError(f"{folder}: already quantized; pass the full-precision folder that it was made from")
    return is_quantized


def _from_pretrained(load_from: Callable[..., Any], folder: Path) -> Any:
    """Load in float32 (CPUs have no fast float16), with one line for what diffusers says at length."""
    try:
        return load_from(folder, torch_dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{folder}: diffusers cannot load it ({lines[0]}); the folder is incomplete or damaged, save it again") from error


def _load_denoiser(folder: Path, name: str, device: str, exclude: Sequence[str], quantized: bool = False) -> Subject:
    _refuse_quantized(folder, quantized)
    model_class = _diffusers_class(folder / "config.json", "ModelMixin", "model; pass a denoiser's folder")
    scheduler_folder = folder if (folder / "scheduler_config.json").exists() else folder.parent / "scheduler"
    if not (scheduler_folder / "scheduler_config.json").exists():
        raise InputError(
            f"{folder}: a bare denoiser needs its scheduler_config.json beside config.json; copy it there, or pass the pipeline's folder"
        )
    scheduler_class = _diffusers_class(
        scheduler_folder / "scheduler_config.json", "SchedulerMixin", "scheduler; copy the one that the model was trained with"
    )
    scheduler = _from_pretrained(lambda path, **_: scheduler_class.from_pretrained(path), scheduler_folder)
    # In this layout a probe of mnist-unet takes 10.3 s on two cores instead of 12.7 s.
    denoiser = _from_pretrained(model_class.from_pretrained, folder).to(device, memory_format=torch.channels_last)

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


def _load_pipeline(folder: Path, device: str, prompts: Sequence[str] | None, exclude: Sequence[str], quantized: bool) -> Subject:
    from diffusers import DiffusionPipeline

    try:
        index = json.loads((folder / "model_index.json").read_text())
    except ValueError as error:
        raise InputError(f"{folder / 'model_index.json'}: not valid JSON; the folder is damaged, save it again") from error
    component = next((name for name in DENOISER_COMPONENTS if name in index), None)
    if component is None:
        raise InputError(
            f"{folder}: has no component named {', '.join(DENOISER_COMPONENTS)}; wrap the pipeline in a sedaq.Subject and pass FILE.py:FUNCTION"
        )
    _refuse_quantized(folder / component, quantized)
    pipeline = _from_pretrained(DiffusionPipeline.from_pretrained, folder).to(device)
    denoiser = getattr(pipeline, component)
    conditions: Sequence[Condition] | None = _class_conditions(denoiser)["conditions"]
    if "prompt" in inspect.signature(pipeline.__call__).parameters:
        conditions = prompts
    return Subject(
        denoiser,
        sample=PipelineAdapter(pipeline, conditions),
        conditions=conditions,
        name=folder.resolve().name,
        exclude=exclude,
        folder=folder,
        component=component,
        stored_dtypes=stored_dtypes(folder / component),
    )


def _load_function(text: str, exclude: Sequence[str]) -> Subject:
    """Run FILE.py and call FUNCTION; `exclude` is added to what its Subject leaves alone."""
    file, _, function = text.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{file}: no such file; pass FILE.py:FUNCTION with a function that returns a sedaq.Subject")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise InputError(f"{file}: cannot be run ({type(error).__name__}: {error}); repair it") from error
    make = getattr(module, function, None)
    if not callable(make):
        raise InputError(f"{file}: has no function {function!r}; pass FILE.py:FUNCTION with a function that returns a sedaq.Subject")
    subject = make()
    if not isinstance(subject, Subject):
        raise InputError(f"{text}: returned {type(subject).__name__}; it must return a sedaq.Subject")
    if exclude:
        subject.exclude += tuple(exclude)
        subject.__dict__.pop("layers", None)
    return subject


def _download(hub_id: str) -> Path:
    """The snapshot of a hub id, from the local cache or the network."""
    shape = f"a shipped name ({', '.join(SHIPPED)}), a diffusers folder, a hub id, or FILE.py:FUNCTION"
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/")):
        raise InputError(f"unknown subject {hub_id!r}: no such folder; pass {shape}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id))
    except Exception as error:  # the hub client raises a dozen unrelated types when it is offline
        raise InputError(
            f"subject {hub_id!r}: no such folder, and the hub cannot be reached; run `hf download {hub_id} --local-dir FOLDER` where it can and pass FOLDER"
        ) from error


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Dtype on disk of every tensor in the safetensors files of a denoiser's folder."""
    dtypes: dict[str, torch.dtype] = {}
    paths = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    # A folder may hold a variant (….fp16.safetensors) beside the files that are loaded.
    for path in [path for path in paths if ".fp16." not in path.name] or paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                dtype = SAFETENSORS_DTYPES.get(file.get_slice(name).get_dtype())
                if dtype is not None and dtype.is_floating_point:
                    dtypes[name] = dtype
    return dtypes
