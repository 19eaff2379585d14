"""diffusers' offloading, on the CPU: its hooks bring a component in before it is asked, and the weights of a plan with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sedaq.aq.formats import AS_IS, Format
from sedaq.aq.plans.store import EncodingStore
from sedaq.models.loading import load
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject
from sedaq.sensitivity.probing.assembly import Assembly


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Classes of the modules that were brought to a device; each gets tensors of its own there, as on another device."""
    found: list[str] = []
    to = nn.Module.to

    def copied(module: nn.Module, *where: Any, **how: Any) -> nn.Module:
        found.append(type(module).__name__)
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
        return to(module, *where, **how)

    monkeypatch.setattr(nn.Module, "to", copied)
    return found


def sampled(subject: Subject) -> torch.Tensor:
    return subject.sample(SamplingConfig(steps=2), seed=0, n_images=2)


def test_hooks_do_not_undo_a_plan(pipeline_folder: Path, tmp_path: Path, moved: list[str]) -> None:
    plain, hooked = load(pipeline_folder), load(pipeline_folder)
    pipeline: Any = hooked.adapter.pipeline  # type: ignore[attr-defined]
    pipeline.enable_model_cpu_offload(device="cpu")
    stores = (EncodingStore(subject, tmp_path, calibration={"seed": 0, "n_images": 0}, effort="draft") for subject in (plain, hooked))
    assemblies = [Assembly(store.subject, store) for store in stores]
    names = [layer.name for layer in plain.layers]
    low, mixed = dict.fromkeys(names, Format.parse("1x3g4")), dict.fromkeys(names[::2], Format.parse("1x2g4"))
    images = []
    for plan in (dict.fromkeys(names, AS_IS), low, {**low, **mixed}, None):
        for assembly in assemblies:
            if plan is None:
                assembly.restore()
            else:
                assembly.set(plan)
        moved.clear()
        images.append(sampled(plain))
        assert moved == []
        # but for the order of sums, which may depend on where in memory a tensor lies
        torch.testing.assert_close(sampled(hooked), images[-1], atol=1e-5, rtol=0)
        assert "UNet2DModel" in moved, "the hooks brought it in"
    assert torch.equal(images[0], images[3]) and all((a - images[0]).abs().max() > 0.01 for a in images[1:3])
