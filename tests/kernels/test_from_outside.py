"""A kernel that is added from here: one row of the table."""

from __future__ import annotations

import torch

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format
from sedaq.aq.modules.layers import AQLinear
from sedaq.kernels import dispatch
from sedaq.kernels.dispatch import KERNELS, Kernel


def test_a_kernel(monkeypatch) -> None:
    torch.manual_seed(0)
    layer = AQLinear(encode(torch.randn(16, 24), Format.parse("1x4g4")))
    x = torch.randn(3, 24)
    wanted, seen = layer(x), []

    def slow(x, matrix, bias, geometry):
        seen.append(x.shape)
        return KERNELS["reference"].product(x, matrix, bias, geometry)

    monkeypatch.setitem(KERNELS, "slow", Kernel(slow, "exact"))
    monkeypatch.setattr(dispatch, "IN_TORCH", (*dispatch.IN_TORCH, "slow"))
    monkeypatch.setenv("SEDAQ_KERNEL", "slow")
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    assert seen == [x.shape]
