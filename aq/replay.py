"""A shuffled buffer of what the full-precision denoiser was asked and what it answered, on its own trajectories: no data is needed.

Drawing from it at random removes the jumps between timesteps that tuning step by step suffers from (EfficientDM, He et al. 2024).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..errors import InputError
from ..models.noise import purpose_seed
from ..models.sampling import sample_in_chunks
from ..models.subject import Subject

Call = dict[str, Any]  # argument name → value; tensors have one row an image
FLOAT = torch.float16  # of the buffer


def first_tensor(output: Any) -> torch.Tensor:
    """The denoiser's answer, whether it came as a tensor, a tuple or a diffusers output."""
    return output if isinstance(output, torch.Tensor) else output[0]


def _flat(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments by name, those inside a dict (SDXL's added_cond_kwargs) by "name/key"."""
    for name, value in arguments.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _nested(flat: Call) -> Call:
    """The inverse of _flat."""
    call: Call = {}
    for name, value in flat.items():
        outer, slash, key = name.partition("/")
        if slash:
            call.setdefault(outer, {})[key] = value
        else:
            call[name] = value
    return call


class ReplayBuffer:
    """Calls (x_t, t, condition) with the teacher's outputs.

    Args:
        subject: whose denoiser is in full precision.
        n_images, steps, settings: of the sampling that fills the buffer.
        held_out: share of the trajectories kept for checking, never drawn for tuning.
    """

    def __init__(self, subject: Subject, *, n_images: int, steps: int | None, seed: int, held_out: float = 0.125, **settings: Any) -> None:
        self._signature = inspect.signature(subject.denoiser.forward)
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._fixed: Call = {}
        handle = subject.denoiser.register_forward_hook(self._record, with_kwargs=True)
        try:
            sample_in_chunks(
                subject.sample, "replay buffer", seed=purpose_seed(seed, "tune"), n_images=n_images, chunk=64, steps=steps, **settings
            )
        finally:
            handle.remove()
        if not self._rows:
            raise InputError(f"subject {subject.name}: sampling did not call the denoiser's forward, so it cannot be tuned")
        self.tensors = {name: torch.cat(rows) for name, rows in self._rows.items()}
        del self._rows
        n_rows = len(self.tensors["output"])
        shuffled = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
        n_held = max(1, int(n_rows * held_out))
        self.held_out, self.tuning = shuffled[:n_held], shuffled[n_held:]

    def _record(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        answer = first_tensor(output).detach()
        batch = len(answer)
        for name, value in _flat(self._signature.bind(*args, **kwargs).arguments):
            if not isinstance(value, torch.Tensor):
                if isinstance(value, (int, float)) and self._fixed.get(name, value) != value:
                    raise InputError(
                        f"the denoiser's argument {name!r} is a number that differs between calls ({self._fixed[name]}, {value}); "
                        "pass it as a tensor, or such a denoiser cannot be tuned"
                    )
                self._fixed[name] = value
                continue
            rows = value.detach().expand(batch) if value.ndim == 0 else value.detach()
            if len(rows) != batch:
                raise InputError(
                    f"the denoiser's argument {name!r} has {len(rows)} rows for {batch} images; such a denoiser cannot be tuned"
                )
            self._rows.setdefault(name, []).append(self._small(rows))
        self._rows.setdefault("output", []).append(self._small(answer))

    @staticmethod
    def _small(rows: torch.Tensor) -> torch.Tensor:
        return rows.cpu().to(FLOAT) if rows.is_floating_point() and rows.ndim > 1 else rows.cpu().clone()

    def batch(self, rows: torch.Tensor, device: torch.device) -> tuple[Call, torch.Tensor]:
        """The calls of some rows and the teacher's outputs, in float32."""
        tensors = {name: tensor[rows].to(device) for name, tensor in self.tensors.items()}
        call = {name: tensor.float() if tensor.dtype == FLOAT else tensor for name, tensor in tensors.items()}
        target = call.pop("output")
        return _nested({**self._fixed, **call}), target
