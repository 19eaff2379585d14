"""The trajectories that a tuning learns from, and those that it is judged by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ...errors import InputError
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
        if images is not None:
            if settings.refresh_every:
                raise InputError("tuning: own images and refreshing exclude each other; give one of them")
            self.tuning = with_images(self.tuning, subject, images, settings.seed)
        self.weights = TimestepWeights(settings.weighting, Context(subject, self.recording), self.tuning)

    def _opened(self, recording: Recording, path: Path | None) -> ReplayBuffer:
        return ReplayBuffer.opened(path, self.subject, recording) if path else ReplayBuffer.record(self.subject, recording)

    def refresh(self) -> None:
        """The oldest part of the trajectories makes room for new ones."""
        part = self.n_images // N_PARTS
        start = self.n_images + self.n_refreshes * part
        self.tuning = self.tuning.refreshed(
            ReplayBuffer.record(self.subject, replace(self.recording, n_images=part, start=start), n_parts=1)
        )
        self.n_refreshes += 1

    def refresh_until(self, n: int) -> None:
        """As after n refreshes."""
        self.n_refreshes = max(self.n_refreshes, n - N_PARTS)  # the last ones replace all that was there before
        while self.n_refreshes < n:
            self.refresh()
