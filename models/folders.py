"""Folders that diffusers writes: which files are in them, and what they say."""

from __future__ import annotations

import importlib.util
import json
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import InputError
from ..storage import SAFETENSORS_DTYPES, check_regular, parsed, read_json

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
# Names of denoisers, for what is asked of a folder before it is loaded.
DENOISER_COMPONENTS = ("transformer", "unet", "prior", "decoder", "transformer_2", "prior_prior")
# What configs cannot say: {conditions, null_condition, extractor, steps, guidance, max_tokens, batch_size}. sedaq writes it into the folders of its own models.
SUBJECT_FILE = "sedaq_subject.json"
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.(?P<kind>safetensors|bin|msgpack|h5|onnx|pb)"
)
_TEXTS = re.compile(r"(?i)(readme|licen[cs]e|notice)")
_OTHER_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".pb", ".gguf")
_INDEX = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")


def is_text(path: Path) -> bool:
    """Whether a file is for people: a card, a licence, a notice."""
    return _TEXTS.match(path.name) is not None


def is_of_transformers(module: nn.Module) -> bool:
    """Whether a component is a model of transformers, as text encoders are."""
    return any(base.__module__.partition(".")[0] == "transformers" for base in type(module).__mro__)


def weights_file(module: nn.Module) -> str:
    """Name of the file that a component's weights are saved in."""
    return "model.safetensors" if is_of_transformers(module) else WEIGHTS_FILE


# The most that a config may say, by names of fields: building a model of more takes hours, or more memory than there is.
_MOST = ((r"layers|blocks|depth", 1000), (r"timesteps|(sample|image)_size", 1 << 17), (r"", 1 << 27))


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError for anything else, and for numbers that no model has."""
    try:
        check_regular(path)
        config = parsed(path.read_bytes(), str(path), "the folder is damaged, save it again")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); the folder is damaged, save it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no JSON object with a field '_class_name'; the folder is damaged, save it again")
    check_numbers(path, config)
    return config


def check_numbers(path: Path, value: Any, name: str = "") -> None:
    """Raise InputError for numbers in a config that no model has."""
    for inner, part in value.items() if isinstance(value, dict) else ((name, part) for part in value) if isinstance(value, list) else ():
        check_numbers(path, part, inner)
    most = next(most for pattern, most in _MOST if re.search(pattern, name))
    if isinstance(value, int) and abs(value) > most:
        raise InputError(
            f"{path}: field {name!r} is {reprlib.repr(value)}, more than the {most:,} that a model may have; get the model from somewhere else"
        )


def components_in(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """The components that model_index.json names, with library and class; both are None for one that is absent.

    Raises:
        InputError: a name that would lead out of the folder, and a library that would be imported and is not of diffusers' models.
    """
    path = folder / "model_index.json"
    found: dict[str, tuple[str | None, str | None]] = {}
    for name, entry in read_config(path).items():
        if (
            name.startswith("_")
            or not isinstance(entry, list)
            or len(entry) != 2
            or not all(part is None or isinstance(part, str) for part in entry)
        ):
            continue  # a setting of the pipeline
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
            raise InputError(f"{path}: has a component {name!r}, which is no name of a folder in it; get the model from somewhere else")
        library = entry[0]
        if library not in (None, "diffusers", "transformers") and not _is_pipeline_of_diffusers(library):
            raise InputError(
                f"{path}: the {name} comes from {library!r}, code that sedaq does not run; pass a sedaq.Subject made in your own FILE.py"
            )
        found[name] = library, entry[1]
    return found


def _is_pipeline_of_diffusers(name: str) -> bool:
    """Whether diffusers has a folder of that name, such as stable_diffusion's, whose safety checker is no model of its own elsewhere."""
    return re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) is not None and importlib.util.find_spec(f"diffusers.pipelines.{name}") is not None


def _weights_kind(name: str) -> tuple[str, str] | None:
    """(variant, kind) of a file of weights or of its index; None for other files."""
    match = _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)
    return (match["variant"] or "", match["kind"]) if match else None


def loaded_weights(folder: Path) -> tuple[str, str] | None:
    """(variant, kind) of the weights in a component's folder that are loaded: safetensors before .bin, those without a variant first.

    None where there are none. Raises InputError where several variants are there and none without.
    """
    return chosen_weights([path.name for path in folder.iterdir()] if folder.is_dir() else [], str(folder))


def chosen_weights(names: Iterable[str], where: str) -> tuple[str, str] | None:
    """The same of the names of the files in a folder, called `where` in messages."""
    kinds = {kind for name in names if (kind := _weights_kind(name))}
    for suffix in ("safetensors", "bin"):
        variants = sorted(variant for variant, kind in kinds if kind == suffix)
        if "" in variants or len(variants) == 1:
            return variants[0], suffix
        if variants:
            raise InputError(f"{where}: holds the variants {', '.join(variants)} and none without a name; keep one of them")
    return None


def files_of(folder: Path, without: Collection[str] = ()) -> Iterator[Path]:
    """What belongs to a pipeline: its index, what the components that it names load, and texts beside them. Other weights, caches and strays do not.

    Args:
        without: components that are left out.
    """
    index = components_in(folder)
    yield from (folder / name for name in ("model_index.json", SUBJECT_FILE) if (folder / name).exists())
    yield from (path for path in sorted(folder.iterdir()) if path.is_file() and is_text(path))
    for name in index:
        if name in without or not (folder / name).is_dir():
            continue
        paths = {str(path.relative_to(folder / name)): path for path in sorted((folder / name).rglob("*")) if path.is_file()}
        yield from (paths[inner] for inner in component_files(paths, str(folder / name)))


def component_files(names: Collection[str], where: str) -> list[str]:
    """Of the files in a component's folder, by their paths in it, those that belong to it: the weights that are loaded, configs and vocabularies."""
    chosen = chosen_weights([name for name in names if "/" not in name], where)
    return [
        name
        for name in names
        if not any(part.startswith(".") for part in name.split("/"))
        and (_weights_kind(name) == chosen if _weights_kind(name) else not name.endswith(_OTHER_WEIGHTS))
    ]


def hub_files(names: Collection[str], index: Path | None, where: str) -> list[str]:
    """Of the files in a repository, those that a model is loaded from: of a pipeline what its index names, of a bare model its weights and configs."""
    if index is None:
        return component_files([name for name in names if "/" not in name], where)
    found = [name for name in names if name in ("model_index.json", SUBJECT_FILE) or ("/" not in name and _TEXTS.match(name))]
    for component in components_in(index):
        inside = [name.removeprefix(f"{component}/") for name in names if name.startswith(f"{component}/")]
        found += [f"{component}/{name}" for name in component_files(inside, f"{where}/{component}")]
    return found


def copies_of(folder: Path, without: Collection[str] = ()) -> Iterator[tuple[str, Path, bytes | None]]:
    """What a copy of a pipeline without some components holds: name, the file that it is copied from, and other content where that differs.

    Weights lose the name of their variant, so that they are loaded without being asked for by it.
    """
    for path in files_of(folder, without):
        plain = _plain_name(path.name)
        content = None
        if _INDEX.fullmatch(path.name) and plain != path.name:
            index = read_config(path)
            index["weight_map"] = {name: _plain_name(file) for name, file in index.get("weight_map", {}).items()}
            content = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
        yield str(path.relative_to(folder).with_name(plain)), path, content


@contextmanager
def without_variants(folder: Path) -> Iterator[Path]:
    """A pipeline's folder, or where weights of a variant are loaded links to its files without that name, as `copies_of` has them.

    diffusers is told one variant for a whole pipeline, and takes it of each component that has it, also where there are weights without one.
    """
    if not any((chosen := loaded_weights(folder / name)) and chosen[0] for name in components_in(folder)):
        yield folder
        return
    with TemporaryDirectory() as links:
        for name, path, content in copies_of(folder):
            link = Path(links, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                link.symlink_to(path.absolute())
            else:
                link.write_bytes(content)
        yield Path(links)


def _plain_name(name: str) -> str:
    """The name of a file of weights, or of its index, without its variant."""
    found = _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name)
    return name.replace(f".{found['variant']}", "", 1) if found and found["variant"] else name


def weights_of(folder: Path) -> list[Path]:
    """The files of weights that are loaded from a component's folder, shards in order."""
    chosen = loaded_weights(folder)
    names = sorted(path.name for path in folder.iterdir()) if chosen else []
    return [folder / name for name in names if _WEIGHTS.fullmatch(name) and _weights_kind(name) == chosen]


@contextmanager
def opened_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, to be read in parts. Raises InputError for one that is cut short or is none."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a whole safetensors file; the folder is incomplete, save or download it again") from error


def tensor_headers(folder: Path) -> dict[str, tuple[torch.dtype | None, tuple[int, ...]]]:
    """Dtype, None for one that torch has not, and shape on disk of every tensor of the weights that are loaded from a component's folder."""
    found: dict[str, tuple[torch.dtype | None, tuple[int, ...]]] = {}
    for path in weights_of(folder):
        if path.suffix == ".bin":
            try:
                tensors = torch.load(path, map_location="meta", weights_only=True)
                found |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
            except Exception as error:  # whatever a pickle may hold that is refused
                raise InputError(f"{path}: not a whole file of weights; the folder is incomplete, save or download it again") from error
            continue
        with opened_tensors(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found |= {name: (SAFETENSORS_DTYPES.get(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
    return found


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Dtype on disk of every floating-point tensor of the weights that are loaded from a denoiser's folder."""
    return {name: dtype for name, (dtype, _) in tensor_headers(folder).items() if dtype is not None and dtype.is_floating_point}


def source_of(folder: Path) -> str:
    """FILE.py:FUNCTION of a subject that is no diffusers model, whose quantized layers the folder holds; "" for other folders."""
    path = folder / SUBJECT_FILE
    return str(read_json(path, "subject").get("source", "")) if path.exists() else ""
