"""How far a student's answers are from full precision's on trajectories that it was not tuned on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ...models.loading import in_float32
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...models.trace import NeverCalledError, ReplayBuffer
from .settings import TuneConfig
from .student import Student
from .trajectories import Trajectories
from .tuned import Tuned


def row_errors(answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each row, (rows,)."""
    return (answer - target).square().flatten(1).mean(1)


@torch.no_grad()
def batch_errors(student: Student, buffer: ReplayBuffer, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of a buffer, and the errors of the student's answers to them; in the buffer's order, a batch at a time."""
    student.assemble()
    for rows in torch.arange(len(buffer)).split(batch_size):
        call, target = buffer.batch(rows, student.device)
        yield rows, row_errors(student.answer(call), target)


def held_out_errors(
    subject: Subject, parts: Mapping[str, Tuned], settings: TuneConfig, *, buffer_folder: Path, sampling: SamplingConfig | None = None
) -> torch.Tensor:
    """Errors of what `tune_components` made with the same arguments, (answers,) float64: those of all held-out answers of all components.

    A component that is never called in this way of sampling has none.
    """
    found = []
    for prefix, part in in_float32(subject).denoisers.items():
        try:
            buffer = Trajectories(part, settings, buffer_folder / prefix.rstrip("."), sampling).held_out
        except NeverCalledError:
            continue
        errors = [errors for _, errors in batch_errors(parts[prefix].stored_in(part), buffer, settings.batch_size)]
        found.append(torch.cat(errors).double().cpu())
    return torch.cat(found)
