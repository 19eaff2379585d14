"""The trajectories that a tuning learns from, and those that it is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...models.trace import N_PARTS, Recording, ReplayBuffer, require_float32
from .own_images import with_images
from .settings import TuneConfig
from .weighting import Context, TimestepWeights

N_HELD_OUT = 32  # images, at most


class Trajectories:
    """Rows to tune on, and rows of other trajectories to judge by."""

    def __init__(
        self,
        subject: Subject,
        settings: TuneConfig,
        folder: Path | None = None,
        sampling: SamplingConfig | None = None,
        images: torch.Tensor | None = None,
    ) -> None:
        require_float32(subject, "tune it")
        self.subject, self.n_images = subject, settings.n_images
        self.recording = Recording(
            "tune", settings.n_images, seed=settings.seed, sampling=replace(sampling or SamplingConfig(), steps=settings.sampling_steps)
        )
        held_out = replace(self.recording, purpose="tune check", n_images=min(N_HELD_OUT, N_PARTS * max(1, settings.n_images // 32)))
        self.tuning = self._opened(self.recording, folder and folder / "trajectories.safetensors")
        self.held_out = self._opened(held_out, folder and folder / "held_out.safetensors")
        self.n_refreshes = 0
        self.refresh_size = settings.n_images / N_PARTS / held_out.n_images  # images of a refresh for each that is held out
        if images is not None:
            self.tuning = with_images(self.tuning, subject, images, settings.seed)
        self.weights = TimestepWeights(settings.weighting, Context(subject, self.recording), self.tuning)

    def _opened(self, recording: Recording, path: Path | None, record: Callable[[], ReplayBuffer] | None = None) -> ReplayBuffer:
        record = record or partial(ReplayBuffer.record, self.subject, recording)
        return ReplayBuffer.opened(path, self.subject, recording, record) if path else record()

    def refresh(self, student: nn.Module, folder: Path | None = None) -> None:
        """The oldest part of the trajectories makes room for new ones, which the student samples and the teacher answers.

        Where the student's errors lead, the teacher's trajectories never were (Ross et al. 2011, DAgger).

        Args:
            folder: where they are kept, and read back by the same tuning when it goes on.
        """
        recording, place = self._part(self.n_refreshes), self.n_refreshes % N_PARTS

        def record() -> ReplayBuffer:
            part = ReplayBuffer.record(self.subject, recording, n_parts=1, student=student)
            self.tuning.mend(part, place)  # before it is kept: what it replaces is not
            return part

        self.tuning.replace(self._opened(recording, folder and _path(folder, self.n_refreshes), record), place)
        self.n_refreshes += 1

    def restore(self, n: int, folder: Path) -> None:
        """As after n refreshes, whose parts `refresh` kept in `folder`. Raises InputError or DamagedError for parts that cannot be read."""
        numbers = range(max(0, n - N_PARTS), n)
        parts = [ReplayBuffer.load(_path(folder, number), self.subject, self._part(number)) for number in numbers]
        for number, part in zip(numbers, parts, strict=True):
            self.tuning.replace(part, number % N_PARTS)
        self.n_refreshes = n

    def forget(self, folder: Path, *, all_parts: bool) -> None:
        """Delete parts that others have replaced, or all."""
        for number in range(self.n_refreshes if all_parts else self.n_refreshes - N_PARTS):
            _path(folder, number).unlink(missing_ok=True)

    def _part(self, number: int) -> Recording:
        """The trajectories of the `number`-th refresh."""
        n_images = self.n_images // N_PARTS
        return replace(self.recording, purpose="tune student", n_images=n_images, start=number * n_images)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number}.safetensors"
