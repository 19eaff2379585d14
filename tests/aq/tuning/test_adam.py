"""The optimizer: torch's Adam where nothing is forgotten, and what forgetting means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sedaq.aq.tuning.adam import BETAS, EPSILON, Adam, distinct


def run(n_steps: int, seed: int = 0) -> tuple[nn.Parameter, Adam, list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    parameter = nn.Parameter(torch.randn(3, 4, generator=rng))
    optimizer = Adam({"p": parameter})
    gradients = [torch.randn(3, 4, generator=rng) * 10 ** (i % 3) for i in range(n_steps)]
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step(0.1)
    return parameter, optimizer, gradients


def test_it_is_adam_as_torch_has_it():
    ours, _, gradients = run(20)
    theirs = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    reference = torch.optim.Adam([theirs], lr=0.1, betas=BETAS, eps=EPSILON)
    for gradient in gradients:
        theirs.grad = gradient
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_steps_are_relative_to_a_parameters_unit():
    a, b = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = Adam({"a": a, "b": b}, {"b": 0.25})
    for parameter in (a, b):
        parameter.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer.step(0.1)
    torch.testing.assert_close(b, 0.25 * a)
    torch.testing.assert_close(a, torch.tensor([-0.1, 0.1, -0.1]))


def test_an_entry_that_forgot_everything_is_as_new_and_others_go_on():
    parameter, optimizer, _ = run(7)
    share = torch.zeros(3, 1)
    share[1] = 1
    optimizer.forget("p", share)
    before, gradient = parameter.detach().clone(), torch.randn(3, 4)
    parameter.grad = gradient
    optimizer.step(0.1)
    # Adam's first step is as long as the learning rate, whatever the gradient.
    torch.testing.assert_close((before - parameter)[1], 0.1 * gradient.sign()[1], atol=1e-4, rtol=1e-4)
    untouched, other, _ = run(7)
    untouched.grad = gradient
    other.step(0.1)
    assert torch.equal(parameter[[0, 2]], untouched[[0, 2]])


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_forgetting_keeps_the_mean_and_shifts_weight_to_what_comes(share):
    """With all gradients equal to 1 before and −1 after, m / a is −1 by the share of weight that what came after has."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = Adam({"p": parameter})
    for _ in range(3):
        parameter.grad = torch.ones(1)
        optimizer.step(0.0)
    m, a, v, b = optimizer._state["p"]
    assert (m / a).item() == pytest.approx(1) and (v / b).item() == pytest.approx(1)
    past = a.item()
    optimizer.forget("p", share)
    assert (m / a).item() == pytest.approx(1) and a.item() == pytest.approx((1 - share) * past)
    parameter.grad = -torch.ones(1)
    optimizer.step(0.0)
    old, new = BETAS[0] * (1 - share) * past, 1 - BETAS[0]
    assert (m / a).item() == pytest.approx((old - new) / (old + new))
    spread = b.item()
    optimizer.forget("p", share, only_direction=True)
    assert b.item() == spread


def test_parameters_without_a_gradient_stay():
    parameter, optimizer, _ = run(2)
    optimizer.zero_grad()
    before = parameter.detach().clone()
    optimizer.step(0.1)
    assert torch.equal(parameter, before)


def test_its_state_goes_there_and_back():
    parameter, optimizer, _ = run(5)
    kept = {name: t.clone() for name, t in optimizer.tensors().items()}
    copy = parameter.detach().clone()
    other = Adam({"p": (twin := nn.Parameter(copy))})
    other.restore(kept)
    for one, its in ((optimizer, parameter), (other, twin)):
        its.grad = torch.full((3, 4), 0.5)
        one.step(0.01)
    assert torch.equal(parameter, twin)


def test_a_shared_parameter_counts_once():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    assert list(distinct({"x": a, "y": b, "z": a})) == ["x", "y"]
