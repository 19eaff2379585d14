"""A buffer of what the full-precision denoiser was asked and what it answered, on its own trajectories: no data is needed.

Drawing from it at random removes the jumps between timesteps that tuning step by step suffers from (EfficientDM, He et al. 2024).
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..errors import InputError
from ..storage import load_tensors, save_tensors
from .hooks import hooking
from .noise import purpose_seed
from .sampling import SamplingConfig, sample_in_chunks
from .subject import Subject

Call = dict[str, Any]  # argument name → value; tensors have one row an image
FLOAT = torch.float16  # of the buffer
TIMESTEP = "timestep"  # the denoiser's argument
N_PARTS = 4  # that the buffer is recorded in, and refreshed by


def first_tensor(output: Any) -> torch.Tensor:
    """The denoiser's answer, whether it came as a tensor, a tuple or a diffusers output."""
    return output if isinstance(output, torch.Tensor) else output[0]


def with_first_tensor(output: Any, answer: torch.Tensor) -> Any:
    """The same kind of output with another answer."""
    if isinstance(output, torch.Tensor):
        return answer
    if isinstance(output, tuple):
        return (answer, *output[1:])
    return dataclasses.replace(output, **{next(iter(output)): answer})


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


@dataclass(frozen=True)
class Recording:
    """Which trajectories: images start … start + n_images − 1 of the noise of (seed, purpose), sampled as `sampling` says."""

    purpose: str
    n_images: int
    start: int = 0
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def to_dict(self) -> dict[str, Any]:
        """What a file says of it."""
        own = {name: getattr(self, name) for name in ("purpose", "n_images", "start", "seed")}
        return own | {"steps": self.sampling.steps, "settings": self.sampling.identity}


class ReplayBuffer:
    """Calls (x_t, t, condition) with the teacher's outputs, one row an image and call, in the order in which they were made."""

    def __init__(self, tensors: dict[str, torch.Tensor], fixed: Call, call_lengths: list[int]) -> None:
        self.tensors, self.fixed, self.call_lengths = tensors, fixed, call_lengths

    @classmethod
    def record(cls, subject: Subject, recording: Recording, *, n_parts: int = N_PARTS) -> ReplayBuffer:
        """Sample, in full precision, and keep what the denoiser saw and said. Raises InputError for a denoiser whose calls cannot be kept."""
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in subject.denoiser.parameters()):
            raise InputError(f"subject {subject.name}: its denoiser is in 16 bits; load it in float32 to tune it or to round its inputs")
        recorder = _Recorder(subject)
        with hooking(subject.denoiser, after={"": recorder}):
            sample_in_chunks(
                subject.sample,
                "replay buffer",
                recording.sampling,
                seed=purpose_seed(recording.seed, recording.purpose),
                n_images=recording.n_images,
                start=recording.start,
                chunk=recording.n_images // n_parts,
            )
        if not recorder.rows:
            raise InputError(f"subject {subject.name}: sampling did not call the denoiser's forward, so it cannot be tuned")
        lengths = [len(answer) for answer in recorder.rows["output"]]
        return cls({name: torch.cat(rows) for name, rows in recorder.rows.items()}, recorder.fixed, lengths)

    @classmethod
    def opened(cls, path: Path, subject: Subject, recording: Recording) -> ReplayBuffer:
        """The buffer that was kept at `path`; recorded and kept there if there is none.

        Raises:
            InputError: a file of another model or of other trajectories.
        """
        content = {"subject": {"name": subject.name, "fingerprint": subject.fingerprint}, "recording": recording.to_dict()}
        if not path.exists():
            buffer = cls.record(subject, recording)
            save_tensors(path, "replay", buffer.tensors, {**content, "fixed": buffer.fixed, "call_lengths": buffer.call_lengths})
            return buffer
        tensors, metadata = load_tensors(path, "replay")
        owner = metadata["subject"]
        if owner["fingerprint"] != subject.fingerprint:
            raise InputError(
                f"replay buffer {path}: was recorded from {owner['name']} ({owner['fingerprint']}), not from {subject.name} ({subject.fingerprint}); "
                "pass another folder, or delete it"
            )
        metadata["recording"]["settings"].pop("batch_size", None)  # version 0.1.0 noted it
        for name, value in recording.to_dict().items():
            if metadata["recording"][name] != value:
                raise InputError(
                    f"replay buffer {path}: was recorded with {name} {metadata['recording'][name]} where {value} is asked for; "
                    "pass another folder, or delete it"
                )
        return cls(tensors, metadata["fixed"], metadata["call_lengths"])

    def __len__(self) -> int:
        return len(self.tensors["output"])

    @property
    def n_calls(self) -> int:
        return len(self.call_lengths)

    @property
    def call_edges(self) -> list[int]:
        """First row of every call, and the end of the last."""
        return list(itertools.accumulate(self.call_lengths, initial=0))

    @property
    def timesteps(self) -> torch.Tensor:
        """Of every row, float32. Raises InputError for a denoiser that has no such argument."""
        if TIMESTEP not in self.tensors:
            raise InputError(f"the denoiser has no argument `{TIMESTEP}`; choose weighting uniform, order replay and no static activations")
        return self.tensors[TIMESTEP].float()

    def refreshed(self, newer: ReplayBuffer) -> ReplayBuffer:
        """Without the oldest calls, of which as many go as come."""
        gone = sum(self.call_lengths[: newer.n_calls])
        tensors = {name: torch.cat([tensor[gone:], newer.tensors[name]]) for name, tensor in self.tensors.items()}
        return ReplayBuffer(tensors, self.fixed, self.call_lengths[newer.n_calls :] + newer.call_lengths)

    def batch(self, rows: torch.Tensor, device: torch.device) -> tuple[Call, torch.Tensor]:
        """The calls of some rows and the teacher's outputs, in float32."""
        tensors = {name: tensor[rows].to(device) for name, tensor in self.tensors.items()}
        call = {name: tensor.float() if tensor.dtype == FLOAT else tensor for name, tensor in tensors.items()}
        target = call.pop("output")
        return _nested({**self.fixed, **call}), target


class _Recorder:
    """A forward hook that keeps arguments and answers, large floating tensors in 16 bits."""

    def __init__(self, subject: Subject) -> None:
        self._signature = inspect.signature(subject.denoiser.forward)
        self.rows: dict[str, list[torch.Tensor]] = {}
        self.fixed: Call = {}

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        answer = first_tensor(output).detach()
        batch = len(answer)
        for name, value in _flat(self._arguments(args, kwargs)):
            if not isinstance(value, torch.Tensor):
                if any(isinstance(part, torch.Tensor) for part in pytree.tree_leaves(value)):
                    raise InputError(f"the denoiser's argument {name!r} is a collection of tensors; such a denoiser cannot be tuned")
                if isinstance(value, (int, float)) and self.fixed.get(name, value) != value:
                    raise InputError(
                        f"the denoiser's argument {name!r} is a number that differs between calls ({self.fixed[name]}, {value}); "
                        "pass it as a tensor, or such a denoiser cannot be tuned"
                    )
                self.fixed[name] = value
                continue
            rows = value.detach().expand(batch) if value.ndim == 0 else value.detach()
            if len(rows) != batch:
                raise InputError(
                    f"the denoiser's argument {name!r} has {len(rows)} rows for {batch} images; such a denoiser cannot be tuned"
                )
            self.rows.setdefault(name, []).append(self._small(rows))
        self.rows.setdefault("output", []).append(self._small(answer))

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """By name, those of a **kwargs among them."""
        found = dict(self._signature.bind(*args, **kwargs).arguments)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                found |= found.pop(name, {})
        return found

    @staticmethod
    def _small(rows: torch.Tensor) -> torch.Tensor:
        return rows.cpu().to(FLOAT) if rows.is_floating_point() and rows.ndim > 1 else rows.cpu().clone()
