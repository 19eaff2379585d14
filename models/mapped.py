"""Weights that stay in their files: a tensor is read when it is asked for, so that a model may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..errors import InputError
from ..runtime.tasks import json_task
from ..storage import cache_folder, fingerprint, tensor_fingerprint
from .folders import opened_tensors, weights_of


class MappedTensors(Mapping[str, torch.Tensor]):
    """The tensors of some components' folders, by prefix and name, in the dtype that they are stored in.

    Raises:
        InputError: for a folder without safetensors files.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)
        self._files: dict[str, tuple[Path, str]] = {}
        self.paths: list[Path] = []
        for prefix, folder in folders.items():
            paths = weights_of(folder)
            if not paths or any(path.suffix != ".safetensors" for path in paths):
                raise InputError(f"{folder}: holds no .safetensors weights, which alone can be read in parts; save the model with them")
            for path in paths:
                with opened_tensors(path) as file:
                    self._files |= {f"{prefix}{name}": (path, name) for name in file.keys()}
            self.paths += paths

    def __getitem__(self, name: str) -> torch.Tensor:
        path, inner = self._files[name]
        with opened_tensors(path) as file:
            found: torch.Tensor = file.get_tensor(inner)
            return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def part(self, prefix: str) -> MappedTensors:
        """Those of one component, by their names in it."""
        return MappedTensors({"": self._folders[prefix]})

    def fingerprint(self, names: list[str]) -> str:
        """tensor_fingerprint of tensors as they are loaded, floating-point ones in float32; kept on this machine beside the files' sizes and times."""
        key = fingerprint([names, [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths]])
        path = cache_folder() / "weights" / f"{key}.json"

        def make() -> dict[str, str]:
            tensors = ((name, tensor.float() if (tensor := self[name]).is_floating_point() else tensor) for name in names)
            return {"fingerprint": tensor_fingerprint(tensors)}

        return str(json_task("fingerprint of weights", path, "weights", make).result()["fingerprint"])
