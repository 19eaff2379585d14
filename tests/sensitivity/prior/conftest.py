"""A denoiser that is told the image, the time and a label, each by a path of its own."""

from __future__ import annotations

import torch
from torch import nn

from sedaq import Subject
from sedaq.models.noise import image_noise


class Told(nn.Module):
    """Image → picture; time → clock; label → a table that is no layer → name; all of them → mixed → last."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.clock, self.name = nn.Linear(16, 8), nn.Linear(2, 8), nn.Linear(4, 8)
        self.mixed, self.last = nn.Linear(8, 8), nn.Linear(8, 16)
        self.both = nn.Linear(17, 8)
        self.table = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        flat, time = x.flatten(1), timestep.float().expand(len(x))[:, None] / 10
        hidden = self.picture(flat).tanh() + self.clock(torch.cat([time.sin(), time.cos()], 1)) + self.name(self.table[label])
        hidden = hidden + self.both(torch.cat([flat, time], 1)) / 4
        return self.last(self.mixed(hidden.tanh()).tanh()).reshape(x.shape)


def told_subject(**changes: object) -> Subject:
    torch.manual_seed(1)
    denoiser = Told()

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x, labels = image_noise(seed, start, n_images, (1, 4, 4)), torch.arange(start, start + n_images) % 5
        for step in range(steps or 4, 0, -1):
            x = x - 0.1 * denoiser(x, torch.tensor(float(step)), labels)
        return x.sigmoid()

    return Subject(denoiser, sample=sample, conditions=list(range(5)), name="told", **changes)  # type: ignore[arg-type]
