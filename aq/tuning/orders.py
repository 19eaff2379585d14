"""In which order tuning goes through the replay buffer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...models.trace import ReplayBuffer

Order = Callable[[ReplayBuffer, int, int, torch.Generator], torch.Tensor]


def shuffled(buffer: ReplayBuffer, step: int, batch_size: int, rng: torch.Generator) -> torch.Tensor:
    """Rows at random over images and timesteps: successive batches have no trajectory in common that they could jump from."""
    return torch.randint(len(buffer), (batch_size,), generator=rng)


def consecutive(buffer: ReplayBuffer, step: int, batch_size: int, rng: torch.Generator) -> torch.Tensor:
    """The denoiser's calls as they came, one a step, from the first timestep to the last, trajectory after trajectory (as EfficientDM, He et al. 2024, tunes)."""
    first, last = buffer.call_edges[(step - 1) % buffer.n_calls :][:2]
    return torch.arange(first, min(last, first + batch_size))


ORDERS: dict[str, Order] = {"replay": shuffled, "consecutive": consecutive}


def jumps(buffer: ReplayBuffer, order: str, step: int) -> bool:
    """Whether the batch of `step` begins another trajectory than the one before."""
    if order != "consecutive" or step == 1:
        return False
    call = (step - 1) % buffer.n_calls
    starts = buffer.timesteps[torch.tensor(buffer.call_edges[:-1])]
    return call == 0 or bool(starts[call] > starts[call - 1])
