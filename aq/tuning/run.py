"""A tuning under way."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...errors import InputError
from ...kernels.timing import clock
from ...models.calls import Call, answer_of
from ...models.subject import Subject
from ...progress import track
from .adam import Adam
from .code_steps import CODE_STEPS
from .optimizer_reset import OPTIMIZER_RESETS
from .orders import ORDERS, jumps
from .settings import TuneConfig
from .stages import STAGES, WHOLE, unit_loss
from .straight_through import StraightThroughBuffer, stride
from .student import Student
from .trajectories import Trajectories

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

DIVERGED = 10.0  # times the first loss
MIN_TIMED = 6  # steps, to know how many there is time for


class TuningRun:
    """A tuning under way: everything that changes from step to step."""

    def __init__(self, subject: Subject, student: Student, buffers: Trajectories, settings: TuneConfig) -> None:
        self.teacher, self.student, self.buffers, self.settings = subject.denoiser, student, buffers, settings
        self.units = {name: STAGES[name](subject) for name, _ in settings.stages}
        if settings.gradient_checkpointing:
            _enable_checkpointing(student.denoiser)
        self.optimizer = Adam(student.parameters(), student.units())
        self.optimizer_reset = OPTIMIZER_RESETS[settings.optimizer_reset]()
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.means = {name: p.detach().clone() for name, p in student.parameters().items()} if settings.ema_decay else {}
        self.step, self.n_steps, self.looks_without_gain = 0, settings.steps, 0
        self.losses: list[tuple[int, float]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.best_loss = math.inf
        self._seconds, self._began = 0.0, clock(student.device)

    @property
    def seconds(self) -> float:
        """That it took up to now, in all sittings."""
        return self._seconds + clock(self.student.device) - self._began

    @seconds.setter
    def seconds(self, before: float) -> None:
        self._seconds, self._began = before, clock(self.student.device)

    def begin(self) -> None:
        """The loss of what came in, and how many steps there is time for."""
        self.look()
        if self.settings.minutes is not None:
            self.n_steps = self._steps_within(60 * self.settings.minutes)

    def _steps_within(self, seconds: float) -> int:
        """Measured by as many steps as it takes to meet every kind of work; they are undone."""
        start = _copies(self.tensors())
        n_timed = self.settings.code_every * max(1, MIN_TIMED // self.settings.code_every)
        self.n_steps = 2 * n_timed
        times = []
        for step in range(n_timed + 1):  # the first one makes what later ones find
            began = clock(self.student.device)
            self.tune_step(step)
            times.append(clock(self.student.device) - began)
        began = clock(self.student.device)
        self.held_out_loss()
        look = clock(self.student.device) - began
        self.restore(start)
        a_step = sum(times[1:]) / len(times[1:]) + look / self.settings.check_every
        if self.settings.refresh_every:  # student and teacher answer each call once
            a_step += 2 * look * self.buffers.refresh_size / self.settings.refresh_every
        return max(1, int(seconds / a_step))

    def finish(self, checkpoint: Checkpoint | None) -> str:
        """Go on to the last step. Returns what there is to say about the end."""
        settings, refreshes = self.settings, self._refreshes()
        if settings.patience and self.looks_without_gain >= settings.patience:
            return self._impatient()
        for step in track(range(self.step + 1, self.n_steps + 1), "tuning", self.n_steps, done=self.step):
            if step in refreshes:
                self.refresh(checkpoint.trajectories if checkpoint else None)
            self.tune_step(step)
            self.step = step
            if step % settings.check_every and step != self.n_steps:
                continue
            loss = self.look()
            if not loss < DIVERGED * self.losses[0][1]:
                return f"the loss diverged at step {step}; what was best before was kept"
            if checkpoint is not None:
                checkpoint.save(self)
            if settings.patience and self.looks_without_gain >= settings.patience:
                return self._impatient()
        return ""

    def _impatient(self) -> str:
        return f"no better after {self.looks_without_gain} looks at the held-out loss; ended at step {self.step}"

    def _refreshes(self) -> set[int]:
        """The steps before which trajectories are refreshed, evenly spread."""
        n = self.n_steps // self.settings.refresh_every if self.settings.refresh_every else 0
        return {1 + k * self.n_steps // (n + 1) for k in range(1, n + 1)}

    def refresh(self, folder: Path | None = None) -> None:
        """Trajectories of the student as it is now come in the place of old ones; `folder` as Trajectories.refresh has it."""
        with torch.no_grad():
            self.student.assemble()
        with _awake(self.teacher, self.student.device):
            self.buffers.refresh(self.student.denoiser, folder)

    def tune_step(self, step: int) -> None:
        """One P step, and a V step where one is due; `step` counts from 1."""
        settings, buffers, student = self.settings, self.buffers, self.student
        progress = (step - 1) / self.n_steps
        rows = ORDERS[settings.order](buffers.tuning, step, settings.batch_size, self.rng)
        call, target = buffers.tuning.batch(rows, student.device)
        weights = student.assemble()
        codes_move = settings.code_step != "none" and progress < settings.code_until
        if codes_move:
            for weight in weights.values():
                weight.retain_grad()
        loss = self.loss(settings.stage_at(progress), call, target, buffers.weights.of(buffers.tuning, rows).to(student.device))
        self.optimizer.zero_grad()
        loss.backward()
        if jumps(buffers.tuning, settings.order, step):
            self.optimizer_reset.after_jump(self.optimizer)
        # Down to zero by a cosine: the last steps settle.
        self.optimizer.step(settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress)))
        for name, mean in self.means.items():
            mean.lerp_(self.optimizer.parameters[name].detach(), 1 - settings.ema_decay)
        if codes_move:
            self._move_codes(step, progress, weights)

    def _move_codes(self, step: int, progress: float, weights: Mapping[str, torch.Tensor]) -> None:
        """Straight-through buffers grow at every step; codes move at some."""
        settings, layers = self.settings, self.student.layers
        length = stride(settings.code_reach, progress, self.n_steps)
        for path, weight in weights.items():
            if weight.grad is not None:
                layers[path].want(weight, weight.grad, length, settings.buffer_decay)
        if step % settings.code_every == 0:
            move = CODE_STEPS[settings.code_step]
            flips = {path: move(layer, settings) for path, layer in layers.items() if layer.straight_through is not None}
            self.optimizer_reset.after_flips(self.optimizer, self.student, flips)

    def loss(self, stage: str, call: Call, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The loss of one batch at a stage: rows weighted for the whole denoiser, units compared one by one else. weights: (rows,)."""
        if stage == WHOLE:
            return _row_errors(self.student.answer(call), target) @ weights / len(weights)
        return unit_loss(self.student.denoiser, self.teacher, self.units[stage], lambda denoiser: answer_of(denoiser(**call)))

    def held_out_loss(self) -> float:
        """held_out_loss_of the student as it is."""
        return self.held_out_loss_of(self.student)

    @torch.no_grad()
    def held_out_loss_of(self, student: Student) -> float:
        """Mean squared error of its answers on trajectories that are not tuned on, timesteps weighted as in tuning."""
        buffer, total = self.buffers.held_out, 0.0
        student.assemble()
        for rows in torch.arange(len(buffer)).split(self.settings.batch_size):
            call, target = buffer.batch(rows, student.device)
            weights = self.buffers.weights.of(buffer, rows).to(student.device)
            total += (_row_errors(student.answer(call), target) @ weights).item()
        return total / len(buffer)

    def held_out_power(self) -> float:
        """Mean square of the teacher's answers on the same trajectories, weighted alike: the loss of a student that answers zeros."""
        buffer = self.buffers.held_out
        powers = buffer.tensors["output"].float().square().flatten(1).mean(1)
        return (powers @ self.buffers.weights.of(buffer, torch.arange(len(buffer)))).item() / len(buffer)

    def look(self) -> float:
        """Judge the student, and its running mean where one is kept: the lower loss."""
        best_before = self.best_loss
        loss = self._judge()
        if self.means and self.step:
            now = _copies(self.optimizer.parameters)
            self._put(self.means)
            loss = min(loss, self._judge(), key=or_infinity)
            self._put(now)
        self.looks_without_gain = 0 if self.best_loss < best_before else self.looks_without_gain + 1
        self.losses.append((self.step, loss))
        return loss

    def _judge(self) -> float:
        """The held-out loss; the student is remembered if it is the best so far."""
        loss = self.held_out_loss()
        if loss < self.best_loss or not self.best:
            self.best, self.best_loss = _copies(self.student.tensors()), or_infinity(loss)
        return loss

    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.optimizer.parameters.items():
            parameter.data.copy_(values[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that changes from step to step, by "part:name"."""
        parts = {
            "now": self.student.tensors(),
            "best": self.best,
            "adam": self.optimizer.tensors(),
            "mean": self.means,
            "straight_through": {
                f"{path}/{key}": t
                for path, layer in self.student.layers.items()
                if layer.straight_through
                for key, t in vars(layer.straight_through).items()
            },
            "rng": {"state": self.rng.get_state()},
        }
        return {f"{part}:{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            part, _, key = name.partition(":")
            parts[part][key] = tensor.cpu() if part == "rng" else tensor.to(self.student.device)
        self.student.restore(parts["now"])
        self.optimizer.restore(parts["adam"])
        self.best, self.means = parts["best"], parts["mean"]
        for path, layer in self.student.layers.items():
            names = {field.name: f"{path}/{field.name}" for field in fields(StraightThroughBuffer)}
            kept = all(name in parts["straight_through"] for name in names.values())
            layer.straight_through = (
                StraightThroughBuffer(**{field: parts["straight_through"][name] for field, name in names.items()}) if kept else None
            )
        self.rng.set_state(parts["rng"]["state"])


@contextmanager
def _awake(teacher: nn.Module, device: torch.device) -> Iterator[None]:
    """Bring a teacher that rests in the host's memory to the device while the block runs."""
    rests = next(teacher.parameters()).device != device
    if rests:
        teacher.to(device)
    try:
        yield
    finally:
        if rests:
            teacher.to("cpu")


def or_infinity(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _enable_checkpointing(denoiser: Any) -> None:
    if not getattr(denoiser, "_supports_gradient_checkpointing", False):
        raise InputError(f"tuning: {type(denoiser).__name__} cannot do gradient checkpointing; leave it out")
    denoiser.enable_gradient_checkpointing()


def _row_errors(answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each row, (rows,)."""
    return (answer - target).square().flatten(1).mean(1)


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
