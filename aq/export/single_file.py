"""A quantized denoiser in one safetensors file, with its config and plan in the file's metadata."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn

from ...errors import InputError
from ...models.folders import WEIGHTS_FILE, check_numbers, read_config
from ...models.pretrained import model_class_of
from ...outputs import check_out
from ...storage import parsed, write_atomically_by
from ..modules.integration import put_stored, stored_config
from ..plans.plan import SAFETENSORS_METADATA
from ..tensor_files import write_tensors_in_turn
from .apply import PLAN_FILE

_CONFIG, _PLAN = "sedaq_config", "sedaq_plan"


def check_single_file(out: Path, folder: Path) -> None:
    """Before any work: raise InputError where the file cannot be written, or would lie in the folder `folder`, which apply writes anew."""
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"`single_file` {out}: lies in {folder}, which is written anew every time; choose a place outside of it")
    check_out("single_file", out, _CONFIG)


def write_single_file(folder: Path, out: Path) -> None:
    """Everything of a quantized denoiser's folder in the file `out`.

    Args:
        folder: that `apply` wrote, of a denoiser or of a pipeline with one quantized component.

    Raises:
        InputError: for a folder without a quantized denoiser, one of several quantized components, and a model that is not of diffusers.
    """
    found = [path.parent for path in (folder / PLAN_FILE, *sorted(folder.glob(f"*/{PLAN_FILE}"))) if path.exists()]
    if len(found) != 1 or not (found[0] / WEIGHTS_FILE).exists():
        raise InputError(f"`single_file`: {folder} holds not one quantized model of diffusers; keep the folder")
    source = found[0]
    config = read_config(source / "config.json")
    if "_class_name" not in config:
        raise InputError(f"`single_file`: {folder} is of a model of your own, which no file can make; keep the folder")
    metadata = {**SAFETENSORS_METADATA, _CONFIG: json.dumps(config), _PLAN: (source / PLAN_FILE).read_text(encoding="utf-8")}
    with safe_open(source / WEIGHTS_FILE, framework="pt") as file:
        specs = {name: (tensor.dtype, tuple(tensor.shape)) for name in file.keys() if (tensor := file.get_tensor(name)) is not None}
        write_atomically_by(out, lambda path: write_tensors_in_turn(path, specs, file.get_tensor, metadata))


def load_file(path: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """The quantized denoiser in a file that `apply` wrote with `single_file`.

    Args:
        dtype: that it computes in; what is stored stays as it is.

    Raises:
        InputError: for a file that holds no quantized model.

    Example:
        >>> load_file("dit-2bit.safetensors")  # doctest: +SKIP
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if _CONFIG in metadata else {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error}); pass a file that `sedaq apply` wrote") from error
    if _CONFIG not in metadata:
        raise InputError(f"{path}: holds no model that sedaq quantized; pass a file that `sedaq apply` wrote")
    config = parsed(metadata[_CONFIG], str(path), "apply the plan again")
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no config of a model; apply the plan again")
    check_numbers(path, config)
    quantization = stored_config(config, str(path))
    config.pop("quantization_config")
    model_class = model_class_of(config, str(path))
    try:
        with init_empty_weights():
            model: nn.Module = model_class.from_config(config)
    except Exception as error:  # whatever an architecture raises on numbers that it cannot have
        raise InputError(
            f"{path}: diffusers cannot build its model ({type(error).__name__}); the file is damaged, apply the plan again"
        ) from error
    put_stored(model, quantization, tensors, str(path), device="cpu")
    return model.eval().requires_grad_(False).to(device=device, dtype=dtype)
