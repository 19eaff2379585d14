"""Checkpoints in one file, such as those that Stable Diffusion, SD3 or FLUX are passed around in: diffusers converts them, with the configs of a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..outputs import write_folder
from ..runtime.tasks import locked
from ..storage import SAFETENSORS_DTYPES, cache_folder, fingerprint
from .folders import SUBJECT_FILE, components_in, files_of
from .pretrained import diffusers_class
from .unloaded import architecture

MARK = ".safetensors:"  # of a SUBJECT that is FILE.safetensors:FOLDER
# Names that only a checkpoint of a whole pipeline has beside its denoiser's.
_OF_PIPELINES = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.")


def split(subject: str) -> tuple[Path, Path]:
    """FILE.safetensors and FOLDER of a SUBJECT. Raises InputError unless both are there."""
    file, _, folder = subject.rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"{file}: no such file; pass FILE.safetensors:FOLDER")
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; pass FILE.safetensors:FOLDER, a diffusers folder with the configs of this model")
    return Path(file), Path(folder)


def converted(file: Path, folder: Path) -> Path:
    """The diffusers folder of a checkpoint, made once on this machine and kept in the cache.

    Args:
        file: weights under the names that its first publisher gave them, or that diffusers gives them: of a whole pipeline, or of the denoiser alone.
        folder: of a model of the same architecture, whose configs are used, and whose other components where the file is a denoiser's.

    Raises:
        InputError: a file that diffusers cannot convert, or does not for this kind of model.
    """
    configs = sorted(
        path for path in folder.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    state = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in (file, *configs)]
    found = cache_folder() / "converted" / fingerprint(state) / folder.resolve().name
    if not found.exists():
        with locked(found.parent):  # another process may convert it, too
            if not found.exists():
                write_folder(found, lambda out: _convert(file, folder, out))
    return found


def _convert(file: Path, folder: Path, out: Path) -> None:
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            stored = {SAFETENSORS_DTYPES.get(opened.get_slice(name).get_dtype(), torch.float32) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: not a whole safetensors file; download it again") from error
    # one for all: the widest, so that nothing is rounded
    dtype = max((found for found in stored if found.is_floating_point), key=lambda found: found.itemsize, default=torch.float32)
    is_pipeline = (folder / "model_index.json").exists()
    if is_pipeline:
        components_in(folder)  # refuses what would be imported
    if is_pipeline and any(name.startswith(_OF_PIPELINES) for name in names):
        kind = diffusers_class(folder / "model_index.json", "DiffusionPipeline", "pipeline")
        _from_single_file(kind, file, folder, dtype).save_pretrained(out)
        if (folder / SUBJECT_FILE).exists():
            shutil.copy2(folder / SUBJECT_FILE, out)
        return
    component = _denoiser_of(folder) if is_pipeline else ""
    kind = diffusers_class(folder / component / "config.json", "ModelMixin", "model; pass a denoiser's folder")
    options = {"subfolder": component} if component else {}
    _from_single_file(kind, file, folder, dtype, **options).save_pretrained(out / component)
    others = files_of(folder, [component]) if is_pipeline else (folder / name for name in ("scheduler_config.json", SUBJECT_FILE))
    for path in others:
        if path.exists():
            copy = out / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path.resolve())  # gigabytes, often


def _denoiser_of(folder: Path) -> str:
    names = architecture(folder).components
    if len(names) > 1:
        raise InputError(
            f"{folder}: has the denoisers {', '.join(names)}, and one file cannot be told to be one of them; convert each with diffusers, and pass the folder"
        )
    return names[0]


def _from_single_file(kind: Any, file: Path, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    if not hasattr(kind, "from_single_file"):
        raise InputError(
            f"{file}: diffusers reads no single files of {kind.__name__}; convert it with its publisher's script, and pass the folder"
        )
    try:
        model = kind.from_single_file(str(file), config=str(folder), local_files_only=True, dtype=dtype, **options)
    except Exception as error:  # diffusers' converters raise whatever a missing name leads to
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{file}: diffusers cannot convert it with the configs of {folder} ({line}); check that both are of one model"
        ) from error
    empty = next((name for part in _modules(model) for name, tensor in part.state_dict().items() if tensor.is_meta), None)
    if empty is not None:
        raise InputError(f"{file}: has no tensor for {empty}; check that {folder} is of the same model")
    return model


def _modules(model: Any) -> list[torch.nn.Module]:
    parts = model.components.values() if hasattr(model, "components") else [model]
    return [part for part in parts if isinstance(part, torch.nn.Module)]
