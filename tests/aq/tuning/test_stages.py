"""Units, the loss over them, and that gradients stay inside of a unit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.stages import STAGES, unit_loss
from sedaq.errors import InputError


class _Chain(nn.Module):
    """Two blocks that give tuples, and a layer outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(), _Block()])
        self.last = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x, _ = block(x, extra={"shift": x})
        return self.last(x)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, *, extra: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        y = self.layer(x).tanh()
        return y + extra["shift"], [y]


def disturbed(teacher: nn.Module) -> nn.Module:
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return student


def test_units_of_the_stages(blocks):
    names = [layer.name for layer in blocks.layers]
    assert STAGES["layers"](blocks) == names
    assert STAGES["whole"](blocks) == [""]
    units = STAGES["blocks"](blocks)
    assert [unit for unit in units if unit.startswith("transformer_blocks")] == [f"transformer_blocks.{i}" for i in range(3)]
    assert all(any(name == unit or name.startswith(f"{unit}.") for unit in units) for name in names)
    assert [unit for unit in units if not unit.startswith("transformer_blocks")] == [
        name for name in names if not name.startswith("transformer_blocks")
    ]


def test_the_loss_is_the_mean_relative_error_of_the_units():
    torch.manual_seed(0)
    teacher = _Chain()
    student, x = disturbed(teacher), torch.randn(5, 3)
    loss = unit_loss(student, teacher, ["blocks.0", "blocks.1", "last"], lambda denoiser: denoiser(x))
    given, wanted, parts = x, x, []
    for mine, its in zip(student.blocks, teacher.blocks, strict=True):
        (given, (inner,)), (wanted, (right,)) = mine(given, extra={"shift": given}), its(wanted, extra={"shift": wanted})
        parts += [(given - wanted).square().sum() / wanted.square().sum(), (inner - right).square().sum() / right.square().sum()]
    given, wanted = student.last(given), teacher.last(wanted)
    parts.append((given - wanted).square().sum() / wanted.square().sum())
    assert loss.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)


def test_gradients_stay_inside_of_a_unit():
    torch.manual_seed(0)
    teacher = _Chain()
    student, x = disturbed(teacher), torch.randn(5, 3, requires_grad=True)
    unit_loss(student, teacher, ["blocks.1"], lambda denoiser: denoiser(x)).backward()
    assert student.blocks[1].layer.weight.grad is not None
    assert student.blocks[0].layer.weight.grad is None and student.last.weight.grad is None and x.grad is None
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for root in (student, teacher) for module in root.modules())


def test_units_that_are_never_called_are_an_error():
    teacher = _Chain()
    with pytest.raises(InputError, match="no unit of the stage was called"):
        unit_loss(disturbed(teacher), teacher, ["blocks"], lambda denoiser: denoiser(torch.ones(1, 3)))


def test_the_stage_at_a_part_of_the_way():
    settings = TuneConfig(stages=(("layers", 1.0), ("blocks", 1.0), ("whole", 2.0)))
    assert [settings.stage_at(p) for p in (0, 0.24, 0.25, 0.49, 0.5, 0.999)] == ["layers", "layers", "blocks", "blocks", "whole", "whole"]
    assert TuneConfig().stage_at(0) == TuneConfig().stage_at(1) == "whole"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "`steps`: got -1; give 0 or more"),
        ({"batch_size": 0}, "`batch_size`: got 0; give 1 or more"),
        ({"minutes": 0.0}, "`minutes`: got"),
        ({"minutes": float("nan")}, "`minutes`: got"),
        ({"n_images": 6}, "a multiple of 4 images"),
        ({"order": "sideways"}, "order 'sideways' is unknown; choose among replay, consecutive"),
        ({"weighting": "x"}, "weighting 'x' is unknown; choose among uniform, sensitivity, min-snr"),
        ({"code_step": "x"}, "code_step 'x' is unknown; choose among pv, straight-through, none"),
        ({"optimizer_reset": "x"}, "optimizer_reset 'x' is unknown; choose among semi, none, full"),
        ({"stages": (("half", 1.0),)}, "stages 'half' is unknown; choose among layers, blocks, whole"),
        ({"stages": ()}, "shares above 0"),
        ({"code_every": 0}, "`code_every`: got 0; give 1 or more"),
        ({"check_every": 0}, "`check_every`: got 0; give 1 or more"),
        ({"refresh_every": -1}, "`refresh_every`: got -1; give 0 or more"),
        ({"patience": -1}, "`patience`: got -1; give 0 or more"),
        ({"seed": -1}, "`seed`: got -1; give 0 or more"),
        ({"sampling_steps": 0}, "`sampling_steps`: got 0; give 1 or more"),
        ({"judged_images": -1}, "`judged_images`: got -1; give 0 or more"),
        ({"code_until": 0.0}, "`code_until`: got 0.0; give a share above 0 and at most 1"),
        ({"code_until": 1.5}, "`code_until`: got 1.5; give a share above 0 and at most 1"),
        ({"code_share": 1.5}, "`code_share`: got 1.5; give a share above 0 and at most 1"),
        ({"buffer_decay": 2.0}, "`buffer_decay`: got 2.0; give a share above 0 and at most 1"),
        ({"code_reach": 0.0}, "`code_reach`: got 0.0; give a number above zero"),
        ({"trust_ratio": -0.1}, "`trust_ratio`: got -0.1; give a number above zero"),
        ({"learning_rate": -1.0}, "`learning_rate`: got -1.0; give 0 or more"),
        ({"learning_rate": float("nan")}, "`learning_rate`: got nan; give 0 or more"),
        ({"ema_decay": 1.0}, "`ema_decay`: got 1.0; give 0 or more and less than 1"),
        ({"gradient_checkpointing": True, "stages": (("blocks", 1.0),)}, "goes with the stage whole alone"),
        ({"stages": (("whole", 0.0),)}, "shares above 0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        TuneConfig(**changes)
