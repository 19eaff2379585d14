"""Weights that several modules share: one layer, one encoding, stored once, and loaded as they were measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from sedaq.aq.export.apply import apply
from sedaq.aq.formats import Format
from sedaq.aq.modules.layers import quantized_modules
from sedaq.aq.modules.quantize import quantize_
from sedaq.aq.plans.plan import Plan
from sedaq.aq.plans.store import EncodingStore
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.models.folders import WEIGHTS_FILE
from sedaq.models.layers import find_layers, find_ties
from sedaq.models.pretrained import put_quantized
from sedaq.models.subject import Subject
from sedaq.sensitivity.probing.gradients import output_gradients

WIDTH = 16


class Tied(nn.Module):
    """`b` is a module of its own with the weight of `a`; `c` is `a` itself."""

    def __init__(self, kind: str = "both") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.b, self.c = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        if kind in ("weight", "both"):
            self.b.weight = self.a.weight
        if kind in ("module", "both"):
            self.c = self.a

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return x + self.out(self.c(self.b(self.a(x).tanh()).tanh()).tanh()) * timestep[:, None]


def subject_of(kind: str = "both") -> Subject:
    model = Tied(kind)

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed + i)) for i in range(start, start + n_images)])
        for t in range(steps or 4):
            x = model(x, torch.full((n_images,), 1.0 + t))
        return x.sigmoid().reshape(n_images, 1, 4, 4)

    return Subject(model, sample=sample, name="tied")


def test_which_names_are_ties() -> None:
    assert find_ties(Tied("weight")) == {"b.weight": "a.weight"}
    assert find_ties(Tied("both")) == {"b.weight": "a.weight", "c.weight": "a.weight", "c.bias": "a.bias"}
    assert [layer.name for layer in find_layers(Tied("both"))] == ["a", "out"]
    assert [layer.name for layer in find_layers(Tied("both"), ["b"])] == ["out"]
    assert set(subject_of().tied_layers) == {"b", "c"}


def test_calibration_and_gradients_see_all_uses(tmp_path: Path) -> None:
    """Of one that is untied by hand, H is the mean over the modules' own, and the gradients their sum."""
    tied, untied = subject_of("weight"), subject_of("none")
    untied.denoiser.b.weight = nn.Parameter(tied.denoiser.a.weight.detach().clone(), requires_grad=False)  # type: ignore[union-attr]
    untied.denoiser.load_state_dict(tied.denoiser.state_dict())
    stores = [
        EncodingStore(subject, tmp_path / str(i), calibration={"seed": 0, "n_images": 8, "steps": 3})
        for i, subject in enumerate((tied, untied))
    ]
    for store in stores:
        store.calibrate()
    of = [{layer.name: store.hessian(layer).blocks[0] for layer in store.subject.layers} for store in stores]
    torch.testing.assert_close(of[0]["a"], (of[1]["a"] + of[1]["b"]) / 2, atol=1e-5, rtol=1e-4)
    sampling = stores[0].sampling
    gradients = [output_gradients(subject, sampling, seed=0) for subject in (tied, untied)]
    torch.testing.assert_close(gradients[0]["a"], gradients[1]["a"] + gradients[1]["b"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("kind", ["weight", "module", "both"])
@pytest.mark.parametrize("text", ["1x4g4", "int8"])
def test_what_is_loaded_is_what_was_measured(kind: str, text: str, steps: int, tmp_path: Path) -> None:
    subject = subject_of(kind)
    store = EncodingStore(subject, tmp_path / "store", calibration={"seed": 0, "n_images": 8, "steps": 3})
    plan = Plan.of(subject, {layer.name: Format.parse(text) for layer in subject.layers}, encoding=store.identity)
    tuning = TuneConfig(steps=steps, n_images=8, batch_size=4, sampling_steps=3)
    parts = apply(subject, plan, store, tmp_path / "out", tune=tuning if steps else None)
    assert (tmp_path / "out" / WEIGHTS_FILE).stat().st_size == plan.size_bytes
    names = safetensors.torch.load_file(tmp_path / "out" / WEIGHTS_FILE).keys()
    assert [name for name in names if name.endswith(".codes")] == [
        "a.codes",
        *(["b.codes"] * (kind == "module")),
        *(["c.codes"] * (kind == "weight")),
        "out.codes",
    ]
    loaded = put_quantized(subject_of(kind), tmp_path / "out")
    assert len(quantized_modules(loaded.denoiser)) == 4 - (kind != "weight")
    with parts[""].installed(subject):
        expected = subject.sample(seed=5, n_images=4)
    torch.testing.assert_close(loaded.sample(seed=5, n_images=4), expected, atol=1e-5, rtol=1e-4)


def test_quantizing_in_place() -> None:
    model, x = Tied(), torch.randn(5, WIDTH)
    quantize_(model, {"a": "1x4g4"})
    assert model.c is model.a and len(quantized_modules(model)) == 2
    assert torch.equal(model.b.codes, model.a.codes) and not torch.equal(model.b.bias, model.a.bias)
    assert "b.codes" not in model.state_dict() and "b.bias" in model.state_dict()
    torch.testing.assert_close(model.b(x) - model.b.bias, model.a(x) - model.a.bias)
