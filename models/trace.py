"""Recording what a denoiser is asked while its model is sampled, and asking it again: no data is needed.

Drawing from a buffer of calls at random removes the jumps between timesteps that tuning step by step suffers from (EfficientDM, He et al. 2024).
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import InputError
from ..runtime.tasks import Task, as_damage
from ..storage import load_tensors, save_tensors
from .calls import FLOAT, OUTPUT, Call, Template, answer_of, arguments_of, named_leaves
from .hooks import hooking
from .noise import purpose_seed
from .sampling import SamplingConfig, sample_in_chunks
from .subject import Subject

TIMESTEP = "timestep"  # the denoiser's argument
N_PARTS = 4  # that the buffer is recorded in, and refreshed by


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


def require_float32(subject: Subject, purpose: str) -> None:
    """Raise InputError for a denoiser whose weights have 16 bits; `purpose` completes "load it in float32 to …"."""
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in subject.denoiser.parameters()):
        raise InputError(f"subject {subject.name}: its denoiser is in 16 bits; load it in float32 to {purpose}")


class NeverCalledError(InputError):
    """A denoiser that sleeps in this way of sampling, as an expert for late timesteps does in short ones."""


class ReplayBuffer:
    """Calls (x_t, t, condition) with the teacher's answers, in the order in which they were made.

    A tensor has a batch axis if the length of its axis 0 is the number of rows of the call, with different numbers of images: before recording,
    one image is sampled in two steps to compare with. Such tensors are kept in rows, one an image and call, so that rows of several calls can be
    mixed; a single number stands for all rows of its call. Tensors without a batch axis and numbers must be equal in all calls; other objects are
    passed through as they came first. Rows of float32 and float64 are kept in float16, those of 16 bits as they are; a call gets each in the dtype
    that it had.

    Attributes:
        tensors: rows by path, such as "encoder_hidden_states" or "added_cond_kwargs/time_ids"; the answers are "output".
        template: what all calls have in common.
        call_lengths: rows of each call.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], template: Template, call_lengths: list[int]) -> None:
        self.tensors, self.template, self.call_lengths = tensors, template, call_lengths

    @classmethod
    def record(cls, subject: Subject, recording: Recording, *, n_parts: int = N_PARTS, student: nn.Module | None = None) -> ReplayBuffer:
        """Sample, and keep what the denoiser saw and said.

        Args:
            student: whose answers sampling goes on with: what is kept are then its trajectories, with the answers of the subject's own denoiser.

        Raises:
            InputError: for a denoiser whose calls cannot be kept.
        """
        chunk = recording.n_images // n_parts
        recorder = _Recorder(subject, _sizes_of_few(subject, recording, chunk), student)
        with hooking(subject.denoiser, after={"": recorder}):
            sample_in_chunks(
                partial(subject.sample, may_overflow=student is not None),
                "replay buffer" if student is None else "trajectories of the quantized model",
                recording.sampling,
                seed=purpose_seed(recording.seed, recording.purpose),
                n_images=recording.n_images,
                start=recording.start,
                chunk=chunk,
            )
        if not recorder.rows:
            raise NeverCalledError(f"subject {subject.name}: sampling did not call the denoiser's forward, so its calls cannot be replayed")
        lengths = [len(answer) for answer in recorder.rows[OUTPUT]]
        return cls({path: torch.cat(rows) for path, rows in recorder.rows.items()}, recorder.template(), lengths)

    @classmethod
    def opened(cls, path: Path, subject: Subject, recording: Recording, record: Callable[[], ReplayBuffer] | None = None) -> ReplayBuffer:
        """The buffer that was kept at `path`; recorded and kept there if there is none, or if it is damaged.

        Args:
            record: how; by default as ReplayBuffer.record does.

        Raises:
            InputError: a file of another model or of other trajectories.
        """
        content = {"subject": {"name": subject.name, "fingerprint": subject.fingerprint}, "recording": recording.to_dict()}

        def write(path: Path, buffer: ReplayBuffer) -> None:
            fixed, common = buffer.template.to_file()
            save_tensors(path, "replay", buffer.tensors | fixed, {**content, **common, "call_lengths": buffer.call_lengths})

        read = partial(cls.load, subject=subject, recording=recording)
        return Task("replay buffer", path, record or partial(cls.record, subject, recording), write, read).result()

    @classmethod
    def load(cls, path: Path, subject: Subject, recording: Recording) -> ReplayBuffer:
        """The buffer that was kept at `path`.

        Raises:
            InputError: a file of another model or of other trajectories.
            DamagedError: a file that is not what was written.
        """
        tensors, metadata = load_tensors(path, "replay")
        owner = metadata["subject"]
        if owner["fingerprint"] not in (subject.fingerprint, *subject.earlier_fingerprints):
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
        with as_damage(path):
            template = Template.from_file(tensors, metadata)
            rows = {name: tensors[name] for name in (*template.dtypes, OUTPUT)}
            if {len(tensor) for tensor in rows.values()} != {sum(metadata["call_lengths"])}:
                raise InputError("its rows are not those of its calls")
        return cls(rows, template, metadata["call_lengths"])

    def __len__(self) -> int:
        return len(self.tensors[OUTPUT])

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

    def replace(self, newer: ReplayBuffer, place: int) -> None:
        """Put `newer` in the place of as many rows, from the `place`-th such part on; both may have been sampled in batches of other sizes.

        Raises:
            InputError: where such a part begins or ends within a call.
        """
        rows, edges = _place(newer, place), self.call_edges
        if not {rows.start, rows.stop} <= set(edges):
            raise InputError("the replay buffer was not recorded in such parts; delete it")
        self.call_lengths[edges.index(rows.start) : edges.index(rows.stop)] = newer.call_lengths
        for name, tensor in self.tensors.items():
            tensor[rows] = newer.tensors[name]

    def mend(self, newer: ReplayBuffer, place: int) -> None:
        """Where rows of `newer` hold NaN or infinity, put those that they would replace."""
        finite = torch.stack([tensor.reshape(len(newer), -1).isfinite().all(1) for tensor in newer.tensors.values()]).all(0)
        for name, tensor in newer.tensors.items():
            tensor[~finite] = self.tensors[name][_place(newer, place)][~finite]

    def batch(self, rows: torch.Tensor, device: torch.device) -> tuple[Call, torch.Tensor]:
        """The calls of some rows (n,) as one call, and the teacher's answers (n, …), in float32."""
        chosen = {path: tensor[rows] for path, tensor in self.tensors.items()}
        return self.template.fill(chosen, device), chosen[OUTPUT].to(device).float()


def _place(newer: ReplayBuffer, place: int) -> slice:
    return slice(place * len(newer), (place + 1) * len(newer))


def _sizes_of_few(subject: Subject, recording: Recording, chunk: int) -> dict[str, tuple[int, int]]:
    """For every tensor among the denoiser's arguments, by path: (length of axis 0, rows of the call), of a sampling of one image in two steps.

    Two images where the recording itself samples one at a time.
    """
    signature = inspect.signature(subject.denoiser.forward)
    sizes: dict[str, tuple[int, int]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        n_rows = len(answer_of(output))
        for path, leaf in named_leaves(arguments_of(signature, args, kwargs))[0].items():
            if isinstance(leaf, torch.Tensor) and leaf.ndim:
                sizes.setdefault(path, (len(leaf), n_rows))

    batch_size = recording.sampling.batch_size
    n_images = 2 if 1 in (chunk, batch_size) else 1
    sampling = replace(recording.sampling, steps=2, batch_size=batch_size and n_images)
    with hooking(subject.denoiser, after={"": note}):
        subject.sample(sampling, seed=purpose_seed(recording.seed, recording.purpose), n_images=n_images)
    return sizes


class _Recorder:
    """A hook that keeps the arguments and answers of a denoiser's calls.

    Args:
        sizes: of every tensor among the arguments, (length of axis 0, rows of the call) for another number of images.
        student: whose answers sampling goes on with.
    """

    def __init__(self, subject: Subject, sizes: Mapping[str, tuple[int, int]], student: nn.Module | None) -> None:
        self._signature = inspect.signature(subject.denoiser.forward)
        self._sizes, self._student = sizes, student
        self._spec: pytree.TreeSpec | None = None
        self._paths: list[str] = []
        self._fixed: dict[str, Any] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self.rows: dict[str, list[torch.Tensor]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        answer = answer_of(output).detach()
        leaves, spec = named_leaves(arguments_of(self._signature, args, kwargs))
        if self._spec is None:
            self._spec, self._paths = spec, list(leaves)
        elif spec != self._spec or list(leaves) != self._paths:
            raise InputError("the denoiser's calls differ in which arguments they have; such a denoiser cannot be replayed")
        for path, leaf in leaves.items():
            rows = self._rows(path, leaf, len(answer))
            if rows is None:
                self._keep_fixed(path, leaf)
            else:
                self._dtypes[path] = rows.dtype
                self.rows.setdefault(path, []).append(_shrunk(rows))
        self.rows.setdefault(OUTPUT, []).append(_shrunk(answer))
        return None if self._student is None else _answer_with(self._student, args, kwargs)

    def _rows(self, path: str, leaf: Any, n_rows: int) -> torch.Tensor | None:
        """A tensor's rows; None for what has no batch axis. A single number stands for all rows."""
        if not isinstance(leaf, torch.Tensor):
            return None
        length = len(leaf) if leaf.ndim else 1
        other_length, other_rows = self._sizes.get(path, (n_rows, n_rows))
        if length == n_rows and leaf.ndim and other_length == other_rows:
            return leaf.detach()
        if leaf.ndim <= 1 and leaf.numel() == 1:
            return leaf.detach().expand(n_rows)
        if length != other_length and n_rows != other_rows and path in self._sizes:
            raise InputError(f"the denoiser's argument {path!r} has {length} rows for {n_rows} images; such a denoiser cannot be replayed")
        return None

    def _keep_fixed(self, path: str, leaf: Any) -> None:
        first = self._fixed.setdefault(path, leaf)
        if path in self._dtypes or not _same(first, leaf):
            kind = "a tensor without a batch axis" if isinstance(leaf, torch.Tensor) else f"a {type(leaf).__name__}"
            values = "" if isinstance(leaf, torch.Tensor) else f" ({first}, {leaf})"
            raise InputError(
                f"the denoiser's argument {path!r} is {kind} that differs between calls{values}; "
                "pass it as a tensor with a row an image, or such a denoiser cannot be replayed"
            )

    def template(self) -> Template:
        """What the calls had in common."""
        assert self._spec is not None
        # Copies, for what was made in inference mode cannot take part in backward passes.
        fixed = {path: leaf.cpu().clone() if isinstance(leaf, torch.Tensor) else leaf for path, leaf in self._fixed.items()}
        return Template(self._spec, self._paths, fixed, self._dtypes)


def _answer_with(student: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What it returns, outside of inference mode: what its modules keep of a call must not spoil later backward passes."""
    with torch.inference_mode(False), torch.no_grad():
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        return student(*args, **kwargs)


def _same(first: Any, leaf: Any) -> bool:
    """Whether two values of a leaf are equal, as far as that can be known: objects are passed through as they came first."""
    if isinstance(first, torch.Tensor) and isinstance(leaf, torch.Tensor):
        return torch.equal(first, leaf)
    plain = (bool, int, float, str, type(None), torch.Tensor)
    return not (isinstance(first, plain) or isinstance(leaf, plain)) or (type(first) is type(leaf) and first == leaf)


def _shrunk(rows: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory, of more than single numbers in at most 16 bits."""
    return rows.cpu().to(FLOAT) if rows.dtype in (torch.float32, torch.float64) and rows.ndim > 1 else rows.cpu().clone()
