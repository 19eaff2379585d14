"""What a denoiser is asked and answers, as trees: tensors in dicts, lists, tuples and diffusers' outputs, beside anything else."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..errors import DamagedError, InputError

Call = dict[str, Any]  # argument name → value, a tree
FLOAT = torch.float16  # that rows of float32 and float64 are kept in
OUTPUT = "output"  # name of the answers among the rows
_FIXED = "fixed:"  # before the names of tensors without a batch axis, in files


def _answers_among(leaves: list[Any]) -> list[int]:
    """Where the floating-point tensors are that have as many rows as the first of them."""
    found = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 0]
    if not found:
        raise InputError("the denoiser's result holds no floating-point tensor; return one, alone, in a tuple or in a diffusers output")
    return [i for i in found if len(leaves[i]) == len(leaves[found[0]])]


def answer_of(output: Any) -> torch.Tensor:
    """What a denoiser answered, whether it came as a tensor, a tuple or a diffusers output, (rows, …).

    Several floating-point tensors with as many rows as the first are put behind each other, (rows, numbers). Other parts of the result are
    no answer. Raises InputError where there is none.
    """
    leaves = pytree.tree_leaves(output)
    answers = [leaves[i] for i in _answers_among(leaves)]
    return answers[0] if len(answers) == 1 else torch.cat([answer.flatten(1) for answer in answers], 1)


def with_answer(output: Any, answer: torch.Tensor) -> Any:
    """The same kind of output with another answer, in the shape that `answer_of` gives."""
    leaves, spec = pytree.tree_flatten(output)
    indices = _answers_among(leaves)
    parts = [answer] if len(indices) == 1 else answer.split([leaves[i].flatten(1).shape[1] for i in indices], 1)
    for i, part in zip(indices, parts, strict=True):
        leaves[i] = part if len(indices) == 1 else part.reshape(leaves[i].shape).to(leaves[i].dtype)
    return pytree.tree_unflatten(leaves, spec)


def arguments_of(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The arguments of a call by name, those of a **kwargs among them. Raises InputError for a denoiser that takes *args."""
    found = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and name in found:
            raise InputError(f"the denoiser takes arguments without names (*{name}); give its forward named ones")
    return found


def _path_name(path: tuple[Any, ...]) -> str:
    return "/".join(str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name))) for key in path)


def named_leaves(call: Call) -> tuple[dict[str, Any], pytree.TreeSpec]:
    """The leaves of a call by path, such as "added_cond_kwargs/time_ids" or "sizes/0", and its structure."""
    leaves, spec = pytree.tree_flatten_with_path(call)
    named = {_path_name(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise InputError("two parts of the denoiser's arguments have the same path; give the keys of its dicts other names")
    return named, spec


def _as_json(tree: Any) -> Any:
    """Dicts, lists and tuples of numbered leaves as JSON. Raises InputError for other containers."""
    if isinstance(tree, int):
        return tree
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_as_json(part) for part in tree]}
    if type(tree) is dict:
        return {"dict": [[key, _as_json(part)] for key, part in tree.items()]}
    raise InputError(f"the denoiser is asked with a {type(tree).__name__}, which no file can hold; give it dicts, lists and tuples")


def _from_json(node: Any) -> Any:
    """The inverse of `_as_json`. Nothing but dicts, lists and tuples is made of what a file says."""
    kinds: dict[str, Any] = {
        "list": lambda parts: [_from_json(part) for part in parts],
        "tuple": lambda parts: tuple(_from_json(part) for part in parts),
        "dict": lambda parts: {key: _from_json(part) for key, part in parts},
    }
    if isinstance(node, int):
        return node
    try:
        ((kind, parts),) = node.items()
        return kinds[kind](parts)
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise DamagedError("its structure is none of dicts, lists and tuples; record it again") from error


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise DamagedError(f"holds the dtype {name!r}, which torch has not; record it again")
    return found


@dataclass(frozen=True)
class Template:
    """What all calls have in common. fixed: leaves without a batch axis, by path. dtypes: of the leaves with one, as they came."""

    spec: pytree.TreeSpec
    paths: list[str]  # of all leaves, in the order of `spec`
    fixed: dict[str, Any]
    dtypes: dict[str, torch.dtype]

    def fill(self, rows: Mapping[str, torch.Tensor], device: torch.device) -> Call:
        """A call with these rows."""
        given = {path: rows[path].to(device, dtype) for path, dtype in self.dtypes.items()}
        fixed = {path: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf for path, leaf in self.fixed.items()}
        leaves = given | fixed
        call: Call = pytree.tree_unflatten([leaves[path] for path in self.paths], self.spec)
        return call

    def to_file(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and metadata. Raises InputError for a leaf that no file can hold."""
        tensors = {f"{_FIXED}{path}": leaf for path, leaf in self.fixed.items() if isinstance(leaf, torch.Tensor)}
        others = {path: leaf for path, leaf in self.fixed.items() if not isinstance(leaf, torch.Tensor)}
        for path, leaf in others.items():
            try:
                json.dumps(leaf, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"the denoiser's argument {path!r} is a {type(leaf).__name__}, which no file can hold; leave it out"
                ) from error
        dtypes = {path: str(dtype).removeprefix("torch.") for path, dtype in self.dtypes.items()}
        structure = _as_json(pytree.tree_unflatten(range(self.spec.num_leaves), self.spec))
        return tensors, {"fixed": others, "structure": structure, "paths": self.paths, "dtypes": dtypes}

    @classmethod
    def from_file(cls, tensors: Mapping[str, torch.Tensor], metadata: dict[str, Any]) -> Template:
        """The inverse of `to_file`; version 0.1.0 kept tensors in dicts alone, and all that came in float32 in FLOAT.

        Raises DamagedError for a structure that `to_file` does not write.
        """
        fixed = metadata["fixed"] | {name.removeprefix(_FIXED): t for name, t in tensors.items() if name.startswith(_FIXED)}
        if "spec" in metadata:  # of torch's own kind, which imports what it names
            raise DamagedError("recorded by an earlier version of sedaq; record it again")
        if "structure" in metadata:
            dtypes = {path: _dtype(name) for path, name in metadata["dtypes"].items()}
            spec = pytree.tree_structure(_from_json(metadata["structure"]))
            if len(metadata["paths"]) != spec.num_leaves or fixed.keys() | dtypes.keys() != set(metadata["paths"]):
                raise DamagedError("its paths are not those of its structure; record it again")
            return cls(spec, metadata["paths"], fixed, dtypes)
        rows = {name: torch.float32 if t.dtype == FLOAT else t.dtype for name, t in tensors.items() if name != OUTPUT}
        call: Call = {}
        for path in (*fixed, *rows):
            *outer, key = path.split("/")
            (call.setdefault(outer[0], {}) if outer else call)[key] = None
        leaves, spec = named_leaves(call)
        return cls(spec, list(leaves), fixed, rows)
