"""How codes move: the V step and others.

A layer's straight-through buffer u sums the steps that gradients ask for; codes can only go where sums of codewords are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .tunable import TunableLayer

if TYPE_CHECKING:
    from .settings import TuneConfig

BEAM = 5  # of the V step's search, as PV-Tuning has it


@dataclass(frozen=True)
class Flips:
    """Groups whose codes changed: row and group (F,), codes before and after (F, M)."""

    row: torch.Tensor
    group: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor

    def __len__(self) -> int:
        return len(self.row)


CodeStep = Callable[[TunableLayer, "TuneConfig"], Flips]


def _flip(layer: TunableLayer, row: torch.Tensor, group: torch.Tensor, codes: torch.Tensor) -> Flips:
    flips = Flips(row, group, layer.codes[row, group], codes)
    layer.codes[row, group] = codes
    return flips


def _nearer(
    layer: TunableLayer, row: torch.Tensor, group: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes for the targets (F, g), which of them are nearer than the present `weight` (F, g), and the squared changes.

    With several codebooks the search is no exact one: what it finds may be further away than what there is.
    """
    codes, sums = layer.nearest(row, group, target, BEAM)
    nearer = (sums - target).square().sum(1) < (weight - target).square().sum(1)
    moved = nearer & (codes != layer.codes[row, group]).any(1)
    return codes, moved, (sums - weight).square().sum(1)


@torch.no_grad()
def pv(layer: TunableLayer, settings: TuneConfig) -> Flips:
    """PV-Tuning's V step in a subspace (Malinovskii et al. 2024, §3.2): the groups that want to move most are encoded anew by beam search.

    Of the share of groups with the largest ‖u‖ those move, largest first, until their changes use the trust ratio up,
    ‖Δw‖ ≤ ratio · ‖w‖; a moved group's u is zero again.
    """
    assert layer.straight_through is not None
    weight, wanted = layer.grouped(layer.weight()), layer.straight_through.change.float()
    strength = (wanted.square().sum(2) * layer.unpadded).reshape(-1)
    chosen = strength.topk(max(1, int(settings.code_share * strength.numel()))).indices
    row, group = chosen // weight.shape[1], chosen % weight.shape[1]
    codes, moved, change = _nearer(layer, row, group, (weight + wanted)[row, group], weight[row, group])
    limit = settings.trust_ratio**2 * weight.square().sum()
    moved &= strength[chosen] > 0  # padded groups stay, and those that want nothing
    moved &= change <= limit  # one that is too large by itself stands in nobody's way
    moved &= (change * moved).cumsum(0) <= limit
    row, group = row[moved], group[moved]
    layer.straight_through.change[row, group] = 0
    return _flip(layer, row, group, codes[moved])


@torch.no_grad()
def straight_through(layer: TunableLayer, settings: TuneConfig) -> Flips:
    """The baseline that PV-Tuning is held against: latent dense weights take the gradient of the quantized ones, and all groups are encoded anew
    from them. The latent weight is the weight plus its buffer."""
    assert layer.straight_through is not None
    weight = layer.grouped(layer.weight())
    latent = weight + layer.straight_through.change.float()
    row, group = layer.unpadded.nonzero(as_tuple=True)
    codes, moved, _ = _nearer(layer, row, group, latent[row, group], weight[row, group])
    flips = _flip(layer, row[moved], group[moved], codes[moved])
    layer.straight_through.change = (latent - layer.grouped(layer.weight())).to(layer.straight_through.change)
    return flips


def none(layer: TunableLayer, settings: TuneConfig) -> Flips:
    """Codes stay: codebooks and scales alone are tuned."""
    nowhere = torch.empty(0, dtype=torch.long, device=layer.codes.device)
    return _flip(layer, nowhere, nowhere, layer.codes[nowhere, nowhere])


CODE_STEPS: dict[str, CodeStep] = {"pv": pv, "straight-through": straight_through, "none": none}
