"""Gradient scores against finite changes of the model, and layer statistics of entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sedaq import Subject
from sedaq.errors import InputError
from sedaq.models.calibration import calibrate
from sedaq.models.hooks import add_hooks, hooking
from sedaq.models.noise import image_noise
from sedaq.models.sampling import SamplingConfig
from sedaq.sensitivity.probing import gradients, layer_statistics
from sedaq.sensitivity.probing.gradients import output_gradients, row_errors
from sedaq.sensitivity.probing.layer_statistics import NOTHING, EntryStatistics, LayerStatistics
from sedaq.sensitivity.run import Run


class Small(nn.Module):
    """A convolution, a grouped one, and a linear layer at the end, over images (1, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.last = nn.Linear(8, 1)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.first(x).tanh()).tanh()
        return self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def small_subject(**changes: object) -> Subject:
    torch.manual_seed(3)
    denoiser = Small()

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = image_noise(seed, start, n_images, (1, 6, 6))
        for _ in range(steps or 2):
            x = x + 0.5 * denoiser(x)
        return x.sigmoid()

    return Subject(denoiser, sample=sample, name="small", **changes)  # type: ignore[arg-type]


def calls_of(subject: Subject, steps: int, n_images: int) -> torch.Tensor:
    """Inputs of the denoiser while sampling other images than those that gradients are taken on."""
    inputs: list[torch.Tensor] = []
    with hooking(subject.denoiser, before={"": lambda module, args, kwargs: inputs.append(args[0].detach())}):
        subject.sample(SamplingConfig(steps=steps), seed=77, n_images=n_images)
    return torch.cat(inputs)


@pytest.mark.parametrize("name", ["first", "grouped", "last"])
def test_scores_foretell_what_small_random_changes_do_to_the_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "N_IMAGES", 128)
    monkeypatch.setattr(gradients, "N_CALLS", 256)
    subject = small_subject(exclude=("unused",))
    found = output_gradients(subject, SamplingConfig(steps=2), seed=0)
    hessians = {
        layer.name: hessian for layer, hessian in calibrate(subject, subject.layers, n_images=128, sampling=SamplingConfig(steps=2))
    }
    layer, weight = subject.layer(name), subject.weight(name)
    inputs = calls_of(subject, 2, 256)
    whole = subject.denoiser(inputs)
    scores, changes = [], []
    for seed in range(20):
        difference = 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        scores.append(float(found[name] @ row_errors(difference, hessians[name], layer)))
        with subject.weights_replaced({name: weight + difference}), torch.no_grad():
            changes.append(float((subject.denoiser(inputs) - whole).square().sum() / whole.square().sum()))
    # tokens' errors are taken to be independent; in a random direction they are on average, for the last layer there is nothing between
    assert np.mean(scores) == pytest.approx(np.mean(changes), rel=0.1 if name == "last" else 0.5)


def test_the_last_layer_s_score_is_its_own_relative_error() -> None:
    """y = ε: the score is then ‖ΔW X‖² / ‖W X + b‖²."""
    subject = small_subject(exclude=("unused", "first", "grouped"))
    with torch.no_grad():
        subject.denoiser.last.bias.zero_()  # type: ignore[union-attr]
    (hessian,) = (hessian for _, hessian in calibrate(subject, subject.layers, n_images=64, sampling=SamplingConfig(steps=2)))
    weight, layer = subject.weight("last"), subject.layers[0]
    score = float(output_gradients(subject, SamplingConfig(steps=2), seed=0)["last"] @ row_errors(0.1 * weight, hessian, layer))
    assert score == pytest.approx(0.01, rel=0.15)


def test_layers_that_the_output_does_not_see_score_nothing() -> None:
    subject = small_subject()
    found = output_gradients(subject, SamplingConfig(steps=2), seed=0)
    assert found["unused"].sum() == 0 and all(found[name].sum() > 0 for name in ("first", "grouped", "last"))
    again = output_gradients(subject, SamplingConfig(steps=2), seed=0)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_a_denoiser_in_bfloat16_has_gradients_too() -> None:
    exact, subject = output_gradients(small_subject(), SamplingConfig(steps=2), seed=0), small_subject()
    subject.denoiser.bfloat16()
    add_hooks(subject.denoiser, before={"": lambda module, args, kwargs: (tuple(x.bfloat16() for x in args), kwargs)})
    found = output_gradients(subject, SamplingConfig(steps=2), seed=0)
    for name in ("first", "grouped", "last"):
        torch.testing.assert_close(found[name], exact[name], rtol=0.1, atol=0)


def test_row_errors_are_those_of_the_outputs() -> None:
    subject = small_subject(exclude=("unused",))
    layer = subject.layer("grouped")
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 8, 6, 6, generator=rng)
    difference = torch.randn(layer.shape, generator=rng)
    from sedaq.models.calibration import input_columns
    from sedaq.models.hessian import Hessian

    columns = input_columns(inputs, layer, subject.denoiser.get_submodule("grouped"))
    hessian = Hessian.of(columns.transpose(1, 2) @ columns / columns.shape[1])
    outputs = torch.nn.functional.conv2d(inputs, difference, padding=1, groups=2)
    torch.testing.assert_close(row_errors(difference, hessian, layer), outputs.double().square().mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_layer_statistics_are_computed_once_and_read_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = LayerStatistics(run)
    name = run.subject.layers[0].name
    menu = [first.of_entry(name, entry) for entry in run.menus[name]]
    assert menu[-1] == NOTHING and all(trait.error > 0 and trait.weight_error > 0 and trait.score > 0 for trait in menu[:-1])
    assert menu[0].error > menu[-2].error and menu[0].score > menu[-2].score

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(layer_statistics, "output_gradients", refuse)
    monkeypatch.setattr(LayerStatistics, "_of_entry", refuse)
    again = LayerStatistics(run)
    assert [again.of_entry(name, entry) for entry in run.menus[name]] == menu


def test_a_denoiser_that_cannot_be_differentiated_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("its argument 't' is a number")

    for path in (run.folder / "calibration").glob("traits*"):
        path.unlink()
    for path in (run.folder / "calibration").glob("gradients*"):
        path.unlink()
    monkeypatch.setattr(layer_statistics, "output_gradients", refuse)
    for found in (LayerStatistics(run), LayerStatistics(run)):
        assert found.why_no_gradients == "its argument 't' is a number"
        name, menu = run.subject.layers[0].name, run.menus[run.subject.layers[0].name]
        trait = found.of_entry(name, menu[0])
        assert isinstance(trait, EntryStatistics) and trait.score == trait.error


def test_damaged_statistics_are_made_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    first = LayerStatistics(run)
    paths = [path for kind in ("traits", "gradients") for path in (run.folder / "calibration").glob(f"{kind}.*")]
    whole = [path.read_bytes() for path in paths]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-9])
    again = LayerStatistics(run)
    assert again._known == first._known and [path.read_bytes() for path in paths] == whole and len(paths) == 2
    assert all(f"{path}: damaged; the " in caplog.text for path in paths)
