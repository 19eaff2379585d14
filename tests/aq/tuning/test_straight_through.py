"""What codes would like: Adam's steps without momentum, summed."""

from __future__ import annotations

import pytest
import torch

from sedaq.aq.tuning.adam import BETAS
from sedaq.aq.tuning.straight_through import StraightThroughBuffer, stride


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_a_buffer_is_the_sum_of_steps_in_a_constant_gradient(decay):
    """Every step is as long as the stride, whatever the gradient's length; older ones count less by the decay."""
    gradient = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    buffer = StraightThroughBuffer.zeros_like(gradient)
    for _ in range(8):
        buffer.add(gradient, 0.1, decay)
    total = sum(decay**k for k in range(8))
    torch.testing.assert_close(buffer.change.float(), -0.1 * total * gradient.sign(), rtol=0.03, atol=0)


def test_a_buffer_is_what_rmsprop_with_adams_correction_sums_up_to():
    gradients = torch.randn(30, 5, 2, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-3, 1.0, 1e3, 1.0])
    buffer, square, total = StraightThroughBuffer.zeros_like(gradients[0]), torch.zeros(5, 2, 4), torch.zeros(5, 2, 4)
    for step, gradient in enumerate(gradients, 1):
        buffer.add(gradient, 0.01, 1.0)
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        total -= 0.01 * gradient / (square / (1 - BETAS[1] ** step)).sqrt()
    torch.testing.assert_close(buffer.change.float(), total, rtol=0.05, atol=5e-3)  # 16 bits


def test_entries_without_gradients_stay_at_zero():
    buffer = StraightThroughBuffer.zeros_like(torch.zeros(1, 1, 2))
    buffer.add(torch.tensor([[[0.0, 1.0]]]), 0.1, 1.0)
    assert buffer.change[0, 0, 0] == 0 and buffer.change[0, 0, 1] != 0


@pytest.mark.parametrize("n_steps", [40, 1000])
def test_noise_alone_takes_buffers_as_far_as_the_reach(n_steps):
    rng = torch.Generator().manual_seed(2)
    signs = torch.randint(0, 2, (n_steps, 4000), generator=rng) * 2.0 - 1
    lengths = torch.tensor([stride(0.15, step / n_steps, n_steps) for step in range(n_steps)])
    assert (lengths @ signs).std().item() == pytest.approx(0.15, rel=0.05)
    assert lengths[0] == lengths.max() and lengths[-1] < 0.01 * lengths[0]
