"""What the formula says is what tensors take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pytest
import torch

from sedaq.aq.export.apply import assemble
from sedaq.aq.formats import Format
from sedaq.aq.tuning.run import TuningRun, _awake
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.student import Student
from sedaq.aq.tuning.trajectories import Trajectories
from sedaq.aq.tuning.tune import _aside
from sedaq.models.subject import Subject


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


ADAM = 4  # moments and their weights, each as large as the parameter


def tuning_bytes(subject: Subject, formats: Mapping[str, Format], settings: TuneConfig) -> dict[str, int]:
    """Bytes of each part, activations of a batch apart.

    With n weights in layers with codes, of which there are c numbers, and p continuous parameters:

        weights     8 n   dense, with and without row scales, made anew at every step
        gradients   4 n   of them
        buffers     4 n   straight-through, and the mean square of gradients, in 16 bits
        codes      16 c   as they are, as they were best, and as indices in a step
        parameters  4 p · (2 + 1 + 4 [+ 1])  themselves, the best, gradients, Adam [the running mean]
        teacher     as it is in memory; where tuning compares whole answers alone and runs on a GPU, it waits in the host's memory

    The replay buffer holds 16 bits a number, in the host's memory, and is not in it.
    """
    quantized = {name: format for name, format in formats.items() if format.kind == "additive"}
    shapes = {layer.name: layer.shape for layer in subject.layers}
    n = sum(math.prod(shapes[name]) for name in quantized)
    codes = sum(shapes[name][0] * format.n_groups(shapes[name]) * format.n_codebooks for name, format in quantized.items())
    in_layers = {f"{name}.weight" for name in shapes}
    books = {format.book or name: format for name, format in quantized.items()}
    parameters = (
        sum(format.n_codebooks * format.n_stored_entries * format.group_size for format in books.values())
        + sum(shapes[name][0] for name in quantized)
        + sum(p.numel() for name, p in subject.denoiser.named_parameters() if name not in in_layers)
    )
    copies = 3 + ADAM + (settings.ema_decay > 0)
    return {
        "weights": 8 * n,
        "gradients": 4 * n,
        "buffers": 0 if settings.code_step == "none" else 4 * n,
        "codes": 16 * codes,
        "parameters": 4 * copies * parameters,
        "teacher": sum(size([p]) for p in subject.denoiser.parameters()),
    }


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"code_step": "none"}], ids=str)
def test_every_part_is_as_large_as_its_tensors(changes, blocks, shared_plan, books, small):
    settings = dataclasses.replace(small, code_every=1, **changes)
    encodings = assemble(blocks, shared_plan, books)
    run = TuningRun(blocks, Student(blocks, encodings), Trajectories(blocks, settings), settings)
    run.look()
    run.tune_step(1)
    stated = tuning_bytes(blocks, shared_plan.formats, settings)
    layers, parameters = run.student.layers.values(), run.optimizer.parameters.values()
    held = [run.student.denoiser.get_submodule(path).weight for path in run.student.layers]
    assert stated["gradients"] == size(held)
    # Products with row scales keep their other factor for the gradient.
    assert stated["weights"] == 2 * size(held)
    assert stated["buffers"] == size(
        t for layer in layers if layer.straight_through for t in (layer.straight_through.change, layer.straight_through.square)
    )
    best_codes = [tensor for name, tensor in run.best.items() if name.endswith("/codes")]
    indices = [layer.codes.long() for layer in layers]  # that looking codewords up keeps for its gradient
    assert stated["codes"] == size(layer.codes for layer in layers) + size(best_codes) + size(indices)
    best = [tensor for name, tensor in run.best.items() if not name.endswith("/codes")]
    measured = (
        size(parameters) + size(p.grad for p in parameters) + size(best) + size(run.optimizer.tensors().values()) + size(run.means.values())
    )
    # Embeddings and parameters that no gradient reaches are counted and not tuned; they are few.
    assert 0.8 * stated["parameters"] <= measured <= stated["parameters"]
    assert stated["teacher"] == size(blocks.denoiser.parameters())


def test_the_teacher_rests_where_whole_answers_are_compared(small):
    assert small.teacher_rests
    assert not dataclasses.replace(small, stages=(("blocks", 1.0), ("whole", 1.0))).teacher_rests


class Moved(torch.nn.Linear):
    """Remembers where it was moved to, and stays in the host's memory."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.places: list[str] = []

    def to(self, place):
        self.places.append(str(place))
        return self


def test_a_resting_teacher_goes_to_the_host_and_comes_back():
    teacher = Moved()
    with _aside(teacher, torch.device("cuda"), when=True):
        assert teacher.places == ["cpu"]
    assert teacher.places == ["cpu", "cuda"]
    for device, when in (("cpu", True), ("cuda", False)):
        with _aside(teacher, torch.device(device), when=when):
            pass
    assert teacher.places == ["cpu", "cuda"]


def test_a_resting_teacher_is_awake_while_trajectories_are_recorded():
    teacher = Moved()
    with _awake(teacher, torch.device("cuda")):
        assert teacher.places == ["cuda"]
    assert teacher.places == ["cuda", "cpu"]
    with _awake(teacher, torch.device("cpu")):
        pass
    assert teacher.places == ["cuda", "cpu"], "one that never rested stays where it is"
