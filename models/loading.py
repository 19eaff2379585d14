"""From a SUBJECT argument to a Subject."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import InputError
from . import single_files
from .checks import check_finite
from .folders import hub_files, source_of
from .layers import computed_weights
from .pretrained import load_folder, put_quantized
from .subject import Subject
from .unloaded import can_be_mapped, map_folder

log = logging.getLogger("sedaq")
SHIPPED_FOLDER = Path(__file__).parent / "shipped"
SHIPPED = ("mnist-dit", "mnist-unet", "digits-sd", "digits-mmdit")


def load(
    subject: str | Path | Subject,
    *,
    prompts: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    device: str = "cpu",
    quantized: bool = False,
    weights: str | Path | None = None,
    components: Sequence[str] = (),
    mapped: bool = False,
    dtype: str | None = None,
) -> Subject:
    """The subject that the argument names.

    Args:
        subject: a shipped name, a local diffusers folder (pipeline or bare denoiser), a quantized folder, a hub id, FILE.safetensors:FOLDER
            (a checkpoint, and a folder with the configs of its kind), or FILE.py:FUNCTION.
        prompts: conditions of a pipeline that takes prompts.
        exclude: globs of layers to leave alone.
        quantized: whether a folder that sedaq wrote is acceptable (to sample it; it can't be quantized again).
        components: of a pipeline, what is quantized, such as unet, text_encoder, vae; its denoisers where none are named.
        mapped: leave the weights of a folder in their files, to be read one at a time: layers can be listed and encoded, and nothing sampled.
            Only weights of diffusers' models in safetensors files can be; others are loaded.
        dtype: what it computes in, float32 by default, bfloat16 or float16. Layers are encoded from the weights as they are stored all the same.
        weights: folder that sedaq wrote of a subject that is no diffusers model; its quantized layers take the place of the subject's own.

    Raises:
        InputError: naming what was not understood or found, and what to pass instead.
    """
    if weights is not None:
        found = load(subject, prompts=prompts, exclude=exclude, device=device, dtype=dtype)
        return put_quantized(found, Path(weights))
    if isinstance(subject, Subject):
        others = components and tuple(components) != subject.components
        if not set(exclude) <= set(subject.exclude) or (prompts and list(prompts) != subject.conditions) or others:
            raise InputError(
                f"subject {subject.name}: was made in Python, so prompts, components and globs to exclude belong into its Subject(conditions=…, exclude=…)"
            )
        return subject
    check_device(device)
    text = str(subject)
    if ".py:" in text:
        loaded = load(_load_function(text, exclude), components=components)
    else:
        folder = _folder_of(text, quantized)
        if mapped and can_be_mapped(folder, components):
            loaded = map_folder(folder, prompts, exclude, components)
        else:
            loaded = load_folder(folder, device, prompts, exclude, quantized, components, dtype or "float32")
    if components:
        loaded.named_components = loaded.components  # of a pipeline with two denoisers, one may be meant
    if prompts and loaded.conditions != list(prompts):
        raise InputError(f"`prompts`: {text} takes no prompts; leave `prompts` out")
    _check_weights(loaded, quantized)
    return loaded


def _folder_of(text: str, quantized: bool) -> Path:
    """The folder that a SUBJECT names which is no code; what is on the hub is downloaded, and a checkpoint in one file converted."""
    if text in SHIPPED:
        return SHIPPED_FOLDER / text
    if single_files.MARK in text:
        return single_files.converted(*single_files.split(text))
    if Path(text).is_file():
        if text.endswith(".py"):
            raise InputError(f"{text}: is code; pass {text}:FUNCTION, with a function that returns a sedaq.Subject")
        raise InputError(f"{text}: is a file; pass {text}:FOLDER, with a diffusers folder that has the configs of this kind of model")
    folder = Path(text) if Path(text).is_dir() else _download(text)
    source = source_of(folder)
    if source:
        why = "holds quantized layers of your own code" if quantized else "already quantized"
        raise InputError(f"{folder}: {why}; pass {source}, which it was made from, and the folder as `weights`")
    return folder


def _check_weights(loaded: Subject, quantized: bool) -> None:
    """Warn of weights that are made anew in every call; raise InputError for NaN and infinity now, before any work."""
    computed = computed_weights(loaded.denoiser)
    if computed:
        log.warning("%s: the weights of %s are made anew in every call; these layers stay as they are", loaded.name, ", ".join(computed))
    if not quantized and not next(loaded.denoiser.parameters()).is_meta:
        loaded.layers  # noqa: B018  names the layer
    check_finite(loaded.name, loaded.denoiser)


def in_float32(subject: Subject) -> Subject:
    """What has gradients is computed in float32: the subject, or where it was loaded in 16 bits what its folder holds, loaded once more."""
    if subject.adapter.dtype in (None, torch.float32) or subject.folder is None:
        return subject
    prompts = [condition for condition in subject.conditions or () if isinstance(condition, str)]
    device = str(next(subject.denoiser.parameters()).device)
    return load(subject.folder, prompts=prompts or None, exclude=subject.exclude, device=device, components=subject.components)


def may_be_reopened(note: str) -> bool:
    """Whether a model that a file names may be loaded unasked: one that sedaq ships, or a folder that holds none of its user's code. Nothing is run or
    downloaded because a file says so."""
    if ".py:" in note:  # `load` takes it for code, whatever lies under that name
        return False
    if single_files.MARK in note:
        file, _, folder = note.rpartition(":")
        return Path(file).is_file() and Path(folder).is_dir()
    return note in SHIPPED or (Path(note).is_dir() and not source_of(Path(note)))


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"`device` {device}: {str(error).splitlines()[0]}; pass cpu, or a device that this torch has") from error


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
    if str(path.resolve().parent) not in sys.path:  # as when Python runs the file: it may import what lies beside it, now or later
        sys.path.insert(0, str(path.resolve().parent))
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
    subject.source = f"{path.resolve()}:{function}"
    if exclude:
        subject.exclude += tuple(exclude)
        subject.__dict__.pop("layers", None)
    return subject


def _download(hub_id: str) -> Path:
    """The snapshot of a hub id, from the local cache or the network."""
    shape = f"a shipped name ({', '.join(SHIPPED)}), a diffusers folder, a hub id, or FILE.py:FUNCTION"
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/")):
        raise InputError(f"unknown subject {hub_id!r}: no such folder; pass {shape}")
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    try:
        try:
            names = HfApi().list_repo_files(hub_id)
        except Exception:  # offline: what was downloaded before is there
            return Path(snapshot_download(hub_id, local_files_only=True))
        index = Path(hf_hub_download(hub_id, "model_index.json")).parent if "model_index.json" in names else None
        return Path(snapshot_download(hub_id, allow_patterns=hub_files(names, index, hub_id)))
    except InputError:
        raise
    except Exception as error:  # the hub client raises a dozen unrelated types when it is offline
        raise InputError(
            f"subject {hub_id!r}: no such folder, and the hub cannot be reached; run `hf download {hub_id} --local-dir FOLDER` where it can and pass FOLDER"
        ) from error
