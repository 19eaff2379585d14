"""Layers that get the same input have one second moment, and it is the one that each would have alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sedaq.models import calibration
from sedaq.models.calibration import calibrate
from sedaq.models.sampling import SamplingConfig
from sedaq.models.shared_inputs import find_shared, groups_of
from sedaq.models.subject import Subject

WIDTH = 8
STEPS = SamplingConfig(steps=4)


class Attention(nn.Module):
    """`key` and `value` see the context, `value` in late steps alone something else where `moody`."""

    def __init__(self, *, moody: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.gate, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.first, self.second = nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(1, 2, 3, padding=0)
        self.moody = moody

    def forward(self, x: torch.Tensor, t: int) -> torch.Tensor:
        context = x.tanh()
        seen = context if not (self.moody and t > 2) else context * 2
        mixed = self.query(x).sigmoid() * self.gate(x) + self.key(context) * self.value(seen)
        pixels = mixed.unsqueeze(1)
        return x + 0.1 * (mixed + self.first(pixels).mean(1) + self.second(pixels).mean())


def subject_of(model: nn.Module) -> Subject:
    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed + i)) for i in range(start, start + n_images)])
        for t in range(steps or 4):
            x = model(x, t)
        return x.sigmoid().reshape(n_images, 1, 2, 4)

    return Subject(model, sample=sample, name="attention")


def alone(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(calibration, "find_shared", lambda *_: {})
        return {layer.name: h.blocks[0] for layer, h in calibrate(subject, subject.layers, n_images=6, sampling=STEPS)}


def test_what_is_shared() -> None:
    """Convolutions over the same image differ in their columns where their geometry differs."""
    subject = subject_of(Attention())
    shared = find_shared(subject, subject.layers, STEPS)
    assert shared == {"gate": "query", "value": "key"}
    assert [[layer.name for layer in group] for group in groups_of(subject.layers, shared)] == [
        ["query", "gate"],
        ["key", "value"],
        ["first"],
        ["second"],
    ]


@pytest.mark.parametrize("moody", [False, True])
def test_h_is_that_of_each_alone(moody: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a layer that in a longer sampling gets something else after all."""
    subject = subject_of(Attention(moody=moody))
    assert find_shared(subject, subject.layers, STEPS)["value"] == "key"
    found = {layer.name: h.blocks[0] for layer, h in calibrate(subject, subject.layers, n_images=6, sampling=STEPS)}
    expected = alone(subject, monkeypatch)
    assert found.keys() == expected.keys() == {layer.name for layer in subject.layers}
    for name, block in expected.items():
        assert torch.equal(found[name], block), name
    assert torch.equal(found["value"], found["key"]) == (not moody)


@pytest.mark.parametrize("when", ["always", "later"])
def test_a_layer_that_is_called_more_often_has_its_own(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both get the same tensor, and one of them another one beside it: in every call, or in late steps alone."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor, t: int) -> torch.Tensor:
            y = self.a(x) + self.b(x)
            return y.tanh() + (self.a(y.sin()) if when == "always" or t > 2 else 0)

    subject = subject_of(Twice())
    assert find_shared(subject, subject.layers, STEPS) == ({} if when == "always" else {"b": "a"})
    found = {layer.name: h.blocks[0] for layer, h in calibrate(subject, subject.layers, n_images=6, sampling=STEPS)}
    for name, block in alone(subject, monkeypatch).items():
        assert torch.equal(found[name], block), name
    assert not torch.equal(found["a"], found["b"])


def test_a_layer_whose_weight_others_have_shares_with_none() -> None:
    model = Attention()
    model.second.weight = model.first.weight
    model.value.weight = model.gate.weight
    subject = subject_of(model)
    assert find_shared(subject, subject.layers, STEPS) == {}


def test_a_changed_tensor_is_another_input() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor, t: int) -> torch.Tensor:
            y = x.clone()
            z = self.a(y)
            y.mul_(2)
            return z + self.b(y)

    subject = subject_of(Writes())
    assert find_shared(subject, subject.layers, STEPS) == {}


def test_memory_holds_few_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from sedaq.models import shared_inputs

    monkeypatch.setattr(shared_inputs, "N_HELD", 1)
    subject = subject_of(Attention())
    shared = find_shared(subject, subject.layers, STEPS)
    found: Callable[[str], str] = lambda name: shared.get(name, name)  # noqa: E731
    assert found("gate") == "query"
    for name, block in alone(subject, monkeypatch).items():
        h = {layer.name: h.blocks[0] for layer, h in calibrate(subject, subject.layers, n_images=6, sampling=STEPS)}[name]
        assert torch.equal(h, block)
