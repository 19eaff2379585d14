"""How much the error at each timestep counts in tuning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...models.calls import answer_of, with_answer
from ...models.hooks import hooking
from ...models.noise import purpose_seed
from ...models.subject import Subject
from ...models.trace import TIMESTEP, Recording, ReplayBuffer
from ...progress import track

GAMMA = 5.0  # of min-SNR
N_IMAGES, SIZE = 16, 0.05  # of the disturbances by which sensitivity is measured: images, root mean square over the output's


@dataclass(frozen=True)
class Context:
    """What weights may depend on."""

    subject: Subject
    recording: Recording


Weighting = Callable[[Context, torch.Tensor], torch.Tensor]  # of distinct timesteps (n,), ascending → weights (n,) up to a factor


def uniform(context: Context, timesteps: torch.Tensor) -> torch.Tensor:
    """Every timestep alike."""
    return torch.ones(len(timesteps))


def min_snr(context: Context, timesteps: torch.Tensor) -> torch.Tensor:
    """min-SNR-γ (Hang et al. 2023, eq. 8 and 9): min(SNR, γ) on the error of x₀, brought to what the denoiser predicts.

    SNR = ᾱ / (1 − ᾱ). An error of ε is one of x₀ by 1 / SNR, of v by 1 / (SNR + 1).
    """
    scheduler = context.subject.scheduler
    if not hasattr(scheduler, "alphas_cumprod"):
        raise InputError(f"weighting min-snr: {context.subject.name} has no scheduler with alphas_cumprod; choose uniform or sensitivity")
    alphas = scheduler.alphas_cumprod.float().cpu()[timesteps.long().clamp(0, len(scheduler.alphas_cumprod) - 1)]
    snr = alphas / (1 - alphas).clamp(min=1e-8)
    over = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    kind = scheduler.config.prediction_type
    if kind not in over:
        raise InputError(f"weighting min-snr: prediction type {kind!r} is unknown; choose uniform or sensitivity")
    return snr.clamp(max=GAMMA) / over[kind].clamp(min=1e-8)


def sensitivity(context: Context, timesteps: torch.Tensor) -> torch.Tensor:
    """What an error at a timestep does to the image: E‖x(ε + δ) − x(ε)‖² / E‖δ‖², measured by disturbing the denoiser's output at it alone.

    Takes one sampling of N_IMAGES images a timestep.
    """
    undisturbed = _sampled(context)
    weights = []
    for t in track(timesteps.tolist(), "sensitivity of timesteps"):
        disturbance = _Disturbance(context, t)
        moved = _sampled(context, disturbance) - undisturbed
        weights.append(moved.square().mean() / max(disturbance.energy, 1e-30))
    return torch.stack(weights)


class _Disturbance:
    """A forward hook that adds noise to the denoiser's output at one timestep. `energy`: mean square of what was added."""

    def __init__(self, context: Context, timestep: float) -> None:
        self.timestep, self.energy = timestep, 0.0
        self._signature = inspect.signature(context.subject.denoiser.forward)
        self._rng = torch.Generator().manual_seed(purpose_seed(context.recording.seed, "disturbance"))

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = torch.as_tensor(self._signature.bind(*args, **kwargs).arguments[TIMESTEP])
        if given.float().flatten()[0] != self.timestep:
            return None
        answer = answer_of(output)
        noise = torch.randn(answer.shape, generator=self._rng).to(answer) * SIZE * answer.square().mean().sqrt()
        self.energy = noise.square().mean().item()
        return with_answer(output, answer + noise)


def _sampled(context: Context, hook: _Disturbance | None = None) -> torch.Tensor:
    subject, recording = context.subject, context.recording
    with hooking(subject.denoiser, after={"": hook} if hook else {}):
        return subject.sample(recording.sampling, seed=purpose_seed(recording.seed, "sensitivity"), n_images=N_IMAGES).cpu()


WEIGHTINGS: dict[str, Weighting] = {"uniform": uniform, "sensitivity": sensitivity, "min-snr": min_snr}


class TimestepWeights:
    """Of the rows of replay buffers: mean 1 over the one that they were made for."""

    def __init__(self, name: str, context: Context, buffer: ReplayBuffer) -> None:
        self._timesteps: torch.Tensor | None = None
        if name != "uniform":
            self._timesteps, counts = buffer.timesteps.unique(return_counts=True)
            weights = WEIGHTINGS[name](context, self._timesteps)
            self._weights = weights * counts.sum() / (weights * counts).sum()

    def of(self, buffer: ReplayBuffer, rows: torch.Tensor) -> torch.Tensor:
        """Weights (rows,)."""
        if self._timesteps is None:
            return torch.ones(len(rows))
        return self._weights[torch.searchsorted(self._timesteps, buffer.timesteps[rows]).clamp(max=len(self._weights) - 1)]
