"""PV-tuning against the full-precision denoiser (Malinovskii et al. 2024), without data.

P step: Adam on what is continuous (codebooks, row scales, biases, norms), with exact gradients.
V step: gradients of the dense weights accumulate in a buffer beside them; the 1 % of groups that the buffer wants to move most are encoded
        anew by beam search, and only as far as the trust ratio allows. Weights stay sums of codewords throughout.

Deviations: scales are tuned through their logarithm; the V step's buffer moves by gradients over their root mean square (Adam without
momentum has the same effect with a state of twice the size) and decays towards the weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ..errors import InputError
from ..kernels.coded import CodedMatrix
from ..kernels.reference import dequantize
from ..models.subject import Subject
from ..progress import track
from .beam import best_codes
from .encoding import Encoding, coded_matrix, stored_codebooks
from .plan import book_holders
from .replay import Call, ReplayBuffer, first_tensor


@dataclass(frozen=True)
class TuneSettings:
    """How to tune. The learning rate was chosen among three on mnist-dit at 2 bits (docs/experiments.md); the rest is not tuned yet."""

    steps: int = 300
    batch_size: int = 64
    n_images: int = 192  # trajectories in the replay buffer
    sampling_steps: int | None = None
    learning_rate: float = 2e-3  # of codebooks, log scales, biases and norms
    code_rate: float = 1e-2  # of the V step's buffer, relative to the weights' root mean square
    code_share: float = 0.01  # groups that a V step may encode anew
    code_every: int = 5  # P steps between V steps
    trust_ratio: float = 0.02  # largest relative change of a layer's weights in one V step
    buffer_decay: float = 0.9
    check_every: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """Encodings and remaining tensors after tuning, and the loss on held-out trajectories on the way."""

    encodings: dict[str, Encoding]
    others: dict[str, torch.Tensor]  # biases, norms and whatever else was tuned, by name in the state dict
    losses: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out mean squared error)


class _TunableLayer(nn.Module):
    """Codes as they are; codebooks and log scales as parameters; the dense weight as a function of them."""

    def __init__(self, encoding: Encoding, groups: int) -> None:
        super().__init__()
        matrix = coded_matrix(encoding.format, encoding.shape, encoding.tensors)
        self.encoding, self.groups = encoding, groups
        self.codes, self.order = matrix.codes.long(), matrix.order
        stored = encoding.tensors["codebooks"].float()
        if encoding.format.int8_codebooks:
            stored = stored * encoding.tensors["codebook_scales"].float().reshape(-1, 1, 1)
        self.stored = nn.Parameter(stored)
        self.signs = matrix.scales.sign()  # of the scales; zero rows stay zero
        self.log_scales = nn.Parameter(torch.where(self.signs != 0, matrix.scales.abs(), 1.0).log())
        self.expansion = encoding.format.expansion
        # Groups that end in padding keep their codes: codewords there are not bound by the weight.
        self.unpadded = self._grouped(torch.ones(encoding.shape)).amin(2)
        self.buffer: torch.Tensor | None = None  # what the codes would like the weight to be, minus the weight

    def scales(self) -> torch.Tensor:
        return torch.where(self.signs != 0, self.signs * self.log_scales.exp(), 0.0)

    def matrix(self) -> CodedMatrix:
        return CodedMatrix(self.codes, self.expansion @ self.stored, self.scales(), math.prod(self.encoding.shape[1:]), self.order)

    def weight(self) -> torch.Tensor:
        return dequantize(self.matrix()).reshape(self.encoding.shape)

    def _grouped(self, dense: torch.Tensor) -> torch.Tensor:
        """(out, in, *taps) → (out, G, g) in coded column order, padded."""
        rows = dense.reshape(dense.shape[0], -1)
        rows = rows if self.order is None else rows[:, self.order]
        format = self.encoding.format
        return F.pad(rows, (0, self.codes.shape[1] * format.group_size - rows.shape[1])).reshape(*self.codes.shape[:2], format.group_size)

    @torch.no_grad()
    def v_step(self, gradient: torch.Tensor, settings: TuneSettings) -> int:
        """Encode anew the groups that want to move most. Returns how many codes changed."""
        weight = self._grouped(self.weight())
        gradient = self._grouped(gradient)
        size = weight.square().mean().sqrt()
        step = -settings.code_rate * size * gradient / gradient.square().mean().sqrt().clamp(min=1e-30)
        buffer = step if self.buffer is None else settings.buffer_decay * self.buffer + step
        wish = (buffer.square().sum(2) * self.unpadded).reshape(-1)
        chosen = wish.topk(max(1, int(settings.code_share * wish.numel()))).indices
        row, group = chosen // self.codes.shape[1], chosen % self.codes.shape[1]
        scales = self.scales()[row].reshape(1, -1, 1)
        target = (weight + buffer)[row, group].unsqueeze(0)
        books = (self.expansion @ self.stored).detach()
        codes, words = best_codes(-target, torch.eye(target.shape[2]).unsqueeze(0), scales, books, beam=5)
        moved = (codes[0] != self.codes[row, group]).any(1)
        change = (words * scales)[0] - weight[row, group]
        # The trust ratio bounds the step: keep the groups with the strongest wish until it is used up.
        spent = change.square().sum(1).mul(moved).cumsum(0)
        moved &= spent <= settings.trust_ratio**2 * weight.square().sum()
        self.codes[row[moved], group[moved]] = codes[0][moved]
        buffer[row[moved], group[moved]] = 0
        self.buffer = buffer
        return int(moved.sum())

    def encoded(self, provenance: dict[str, str | int | float]) -> Encoding:
        tensors = stored_codebooks(self.encoding.format, self.stored.detach())
        return Encoding.of_codes(
            self.encoding.format,
            self.encoding.shape,
            self.codes,
            tensors,
            self.scales().detach(),
            self.encoding.error,
            {**self.encoding.provenance, **provenance},
        )


class _Student:
    """The quantized denoiser as a function of its tunable parts."""

    def __init__(self, subject: Subject, encodings: Mapping[str, Encoding]) -> None:
        self.denoiser = copy.deepcopy(subject.denoiser)
        groups = {layer.name: layer.groups for layer in subject.layers}
        self.layers = {name: _TunableLayer(e, groups[name]) for name, e in encodings.items() if e.format.kind == "additive"}
        for name, holder in book_holders({name: layer.encoding.format for name, layer in self.layers.items()}).items():
            self.layers[name].stored = self.layers[holder].stored
        fixed = {f"{name}.weight" for name in groups}
        for name, encoding in encodings.items():
            if name not in self.layers:
                self.denoiser.get_submodule(name).weight.data = encoding.dequantize()  # type: ignore[union-attr]
        # Embeddings look rows up: few of them are met in a short tuning, so they stay.
        fixed |= {f"{path}.weight" for path, module in self.denoiser.named_modules() if isinstance(module, nn.Embedding)}
        self.others = {
            name: nn.Parameter(p.detach().clone())
            for name, p in self.denoiser.named_parameters()
            if name not in fixed and p.is_floating_point()
        }

    def parameters(self) -> list[nn.Parameter]:
        return list(dict.fromkeys([*(p for layer in self.layers.values() for p in layer.parameters()), *self.others.values()]))

    def output(self, call: Call, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return first_tensor(
            functional_call(self.denoiser, {**self.others, **{f"{name}.weight": w for name, w in weights.items()}}, (), call)
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: layer.weight() for name, layer in self.layers.items()}

    def state(self) -> dict[str, object]:
        return {
            "others": {name: p.detach().clone() for name, p in self.others.items()},
            "layers": {
                name: (layer.codes.clone(), layer.stored.detach().clone(), layer.log_scales.detach().clone())
                for name, layer in self.layers.items()
            },
        }

    def restore(self, state: dict[str, object]) -> None:
        for name, value in state["others"].items():  # type: ignore[attr-defined]
            self.others[name].data.copy_(value)
        for name, (codes, stored, log_scales) in state["layers"].items():  # type: ignore[attr-defined]
            layer = self.layers[name]
            layer.codes = codes.clone()
            layer.stored.data.copy_(stored)
            layer.log_scales.data.copy_(log_scales)


@torch.no_grad()
def _held_out_loss(student: _Student, buffer: ReplayBuffer, batch_size: int, device: torch.device) -> float:
    weights, total = student.weights(), 0.0
    for rows in buffer.held_out.split(4 * batch_size):
        call, target = buffer.batch(rows, device)
        total += F.mse_loss(student.output(call, weights), target, reduction="sum").item() / target[0].numel()
    return total / len(buffer.held_out)


def tune(subject: Subject, encodings: Mapping[str, Encoding], settings: TuneSettings | None = None, **sampling: Any) -> Tuned:
    """Tune encodings so that the quantized denoiser answers as the full-precision one does on its own trajectories.

    The best state on held-out trajectories is what is returned; it is never worse there than what came in. A loss that is no longer
    finite, or ten times the first, ends the tuning.

    Args:
        subject: in full precision; it is left as it is.
        encodings: one for each eligible layer.
        sampling: settings of the subject's sample function.
    """
    settings = settings or TuneSettings()
    if settings.steps < 0 or settings.batch_size < 1:
        raise InputError(f"tuning takes 0 or more steps of 1 or more images; got {settings.steps} steps of {settings.batch_size}")
    student = _Student(subject, encodings)
    provenance: dict[str, str | int | float] = {"tune_steps": settings.steps, "tune_seed": settings.seed}
    if settings.steps == 0 or not student.parameters():
        return Tuned(dict(encodings), {})
    device = next(subject.denoiser.parameters()).device
    buffer = ReplayBuffer(subject, n_images=settings.n_images, steps=settings.sampling_steps, seed=settings.seed, **sampling)
    optimizer = torch.optim.Adam(student.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95))
    rng = torch.Generator().manual_seed(settings.seed)
    first = best_loss = _held_out_loss(student, buffer, settings.batch_size, device)
    best, losses = student.state(), [(0, first)]
    for step in track(range(1, settings.steps + 1), "tuning", settings.steps):
        _tune_step(student, buffer, optimizer, settings, step, rng, device)
        if step % settings.check_every == 0 or step == settings.steps:
            loss = _held_out_loss(student, buffer, settings.batch_size, device)
            losses.append((step, loss))
            if loss < best_loss:
                best, best_loss = student.state(), loss
            if not loss < 10 * first:
                break
    student.restore(best)
    tuned = {name: student.layers[name].encoded(provenance) if name in student.layers else encodings[name] for name in encodings}
    return Tuned(tuned, {name: p.detach() for name, p in student.others.items()}, losses)


def _tune_step(
    student: _Student,
    buffer: ReplayBuffer,
    optimizer: torch.optim.Optimizer,
    settings: TuneSettings,
    step: int,
    rng: torch.Generator,
    device: torch.device,
) -> None:
    # Down to zero by a cosine: the last steps settle.
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / settings.steps))
    rows = buffer.tuning[torch.randint(len(buffer.tuning), (settings.batch_size,), generator=rng)]
    call, target = buffer.batch(rows, device)
    weights = student.weights()
    v_step = step % settings.code_every == 0
    if v_step:
        for weight in weights.values():
            weight.retain_grad()
    loss = F.mse_loss(student.output(call, weights), target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if v_step:
        for name, layer in student.layers.items():
            gradient = weights[name].grad
            if gradient is not None:
                layer.v_step(gradient, settings)
