"""PV-tuning against the full-precision denoiser (Malinovskii et al. 2024), without data.

P step: Adam on what is continuous (codebooks, row scales, biases, norms), with exact gradients.
V step: some groups are encoded anew where the gradients of their dense weights want them. Weights stay sums of codewords throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ...errors import InputError
from ...models.sampling import SamplingConfig
from ...models.subject import Subject
from ...runtime.tasks import Task, as_damage
from ...storage import fingerprint, tensor_fingerprint
from ..activations.quantizer import ActivationQuantizers
from ..encoding import Encoding
from .artifact import load_tuned, save_tuned
from .checkpoint import Checkpoint
from .judging import images_got_worse
from .run import TuningRun
from .settings import TuneConfig
from .student import Student, check_fit
from .trajectories import Trajectories
from .tuned import Tuned

SPOILT = 0.1  # lost of the teacher's answers: every model measured that lost more was beyond use (docs/experiments/tuning.md)


def tune(
    subject: Subject,
    encodings: Mapping[str, Encoding],
    settings: TuneConfig | None = None,
    *,
    inputs: ActivationQuantizers | None = None,
    images: torch.Tensor | None = None,
    folder: Path | None = None,
    buffer_folder: Path | None = None,
    keep_in: Path | None = None,
    sampling: SamplingConfig | None = None,
) -> Tuned:
    """Tune encodings so that the quantized denoiser answers as the full-precision one does, on the trajectories of both.

    The best state on held-out trajectories is what is returned; it is never worse there than what came in. Nor are a few images that it samples
    farther from full precision's by more than a tenth. A loss that is no longer finite, or ten times the first, ends the tuning.

    Args:
        subject: in full precision; it is left as it is.
        encodings: one for each eligible layer.
        inputs: how the inputs of layers are rounded; ranges of static schemes are tuned, too.
        images: a user's own, (n, C, H, W) in [0, 1], to learn from beside trajectories.
        folder: where the state is kept on the way, so that tuning killed and begun again gives bit for bit what it would have given.
        buffer_folder: where the replay buffer is kept; `folder` if None.
        keep_in: folder that keeps the result, which the same tuning reads back.
        sampling: how trajectories are sampled, but for the number of steps, which `settings` has.

    Raises:
        InputError: encodings that do not fit the subject; a replay buffer of another model.
    """
    settings, sampling = settings or TuneConfig(), sampling or SamplingConfig()
    student = Student(subject, encodings, inputs)
    if settings.steps == 0 and settings.minutes is None:
        return Tuned(dict(encodings), {}, inputs=inputs, ending="0 steps were asked for")
    if not student.parameters():
        return Tuned(dict(encodings), {}, inputs=inputs, ending="no layer has codebooks and nothing else can be tuned")
    identity = fingerprint(
        [
            subject.fingerprint,
            tensor_fingerprint((f"{path}/{key}", t) for path, e in sorted(encodings.items()) for key, t in sorted(e.tensors.items())),
            vars(settings),
            None if inputs is None else inputs.fingerprint,
            None if images is None else tensor_fingerprint([("images", images)]),
            sampling.identity,
        ]
    )

    def make() -> Tuned:
        trajectories = Trajectories(subject, settings, buffer_folder or folder, sampling, images)
        run = TuningRun(subject, student, trajectories, settings)
        return _tuned(subject, run, Tuned(dict(encodings), {}, inputs=inputs), Checkpoint(folder, identity) if folder else None)

    if keep_in is None:
        return make()
    path = keep_in / f"{identity}.safetensors"
    return Task(f"tuning of {subject.name}", path, make, save_tuned, partial(_read, subject)).result()


def _read(subject: Subject, path: Path) -> Tuned:
    """A result that was kept. Raises DamagedError for one that is not of this model."""
    found = load_tuned(path)
    with as_damage(path):
        check_fit(subject, found.encodings)
        if any(tensor.shape != subject.tensor_specs[name][1] for name, tensor in found.others.items()):
            raise InputError(f"its tensors are not those of {subject.name}")
    return found


def _tuned(subject: Subject, run: TuningRun, untuned: Tuned, checkpoint: Checkpoint | None) -> Tuned:
    """The best state, or what came in where that is better."""
    student, settings = run.student, run.settings
    with _aside(subject.denoiser, student.device, when=settings.teacher_rests):
        if checkpoint is None or not checkpoint.load(run):
            run.begin()
        ending = run.finish(checkpoint)
    student.restore(run.best)
    provenance: dict[str, str | int | float] = {"tune_steps": run.n_steps, "tune_seed": settings.seed}
    others = {name: parameter.detach().clone() for name, parameter in student.others.items()}
    encodings, inputs = student.encoded(untuned.encodings, provenance), student.inputs() if untuned.inputs else None
    tuned = Tuned(encodings, others, run.losses, inputs, ending)
    loss, power = run.held_out_loss_of(tuned.stored_in(subject)), run.held_out_power()
    fallen_back = ""
    if not loss < run.losses[0][1]:
        fallen_back = "nothing was better, once stored, than what came in, which is handed out"
    elif settings.judged_images:
        fallen_back = images_got_worse(subject, untuned, tuned, run.buffers.recording, settings.judged_images)
    if not fallen_back:
        return replace(tuned, lost=loss / power, seconds=run.seconds)
    ending = "; ".join(part for part in (ending, fallen_back) if part)
    return replace(untuned, losses=run.losses, ending=ending, lost=run.losses[0][1] / power, seconds=run.seconds)


@contextmanager
def _aside(teacher: nn.Module, device: torch.device, *, when: bool) -> Iterator[None]:
    """Keep the teacher in the host's memory while the block runs: its answers are in the replay buffer."""
    if not when or device.type == "cpu":
        yield
        return
    teacher.to("cpu")
    try:
        yield
    finally:
        teacher.to(device)
