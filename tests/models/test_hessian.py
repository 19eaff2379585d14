"""The block-diagonal Hessian does what the dense matrix would do."""

from __future__ import annotations

import pytest
import torch

from sedaq.errors import InputError
from sedaq.models import hessian as module
from sedaq.models.hessian import Hessian, block_edges

GROUPS, WIDTHS = 2, (6, 3, 5)
N_IN = sum(WIDTHS)


def made(widths: tuple[int, ...]) -> tuple[Hessian, torch.Tensor]:
    """A Hessian of positive definite blocks, and the dense matrix (groups, in, in)."""
    rng = torch.Generator().manual_seed(0)
    factors = [torch.randn(GROUPS, width, width + 2, generator=rng) for width in widths]
    blocks = tuple(factor @ factor.transpose(1, 2) for factor in factors)
    dense = torch.stack([torch.block_diag(*(block[g] for block in blocks)) for g in range(GROUPS)])
    return Hessian(blocks), dense


@pytest.fixture(params=[(N_IN,), WIDTHS], ids=["whole", "blocks"])
def pair(request: pytest.FixtureRequest) -> tuple[Hessian, torch.Tensor]:
    return made(request.param)


def test_sizes_and_diagonal(pair) -> None:
    hessian, dense = pair
    assert (hessian.n_in, hessian.groups) == (N_IN, GROUPS)
    assert hessian.diagonal.equal(dense.diagonal(dim1=1, dim2=2))


def test_rows_of_any_range(pair) -> None:
    hessian, dense = pair
    for start in range(N_IN):
        for stop in range(start, N_IN + 1):
            assert hessian.rows(start, stop).equal(dense[:, start:stop])


def test_times(pair) -> None:
    hessian, dense = pair
    x = torch.randn(GROUPS, 7, N_IN, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(hessian.times(x), x @ dense)


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("n_padded", [N_IN, N_IN + 2])
def test_prepared_is_ordered_damped_and_padded(pair, n_padded: int, damping: float) -> None:
    hessian, dense = pair
    edges = [0]
    for block in hessian.blocks:
        edges.append(edges[-1] + block.shape[-1])
    rng = torch.Generator().manual_seed(2)
    spans = list(zip(edges, edges[1:], strict=False))
    order = torch.cat([a + torch.randperm(b - a, generator=rng) for a, b in spans])
    expected = torch.zeros(GROUPS, n_padded, n_padded)
    expected[:, :N_IN, :N_IN] = dense[:, order][:, :, order]
    for a, b in spans:
        ridge = damping * dense[:, range(a, b), range(a, b)].mean(1)
        expected[:, range(a, b), range(a, b)] += ridge[:, None]
    torch.testing.assert_close(hessian.prepared(order, n_padded, damping).rows(0, n_padded), expected)


def test_prepared_without_an_order_keeps_the_columns(pair) -> None:
    hessian, dense = pair
    torch.testing.assert_close(hessian.prepared(None, N_IN, 0.0).rows(0, N_IN), dense)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_matrix_that_cannot_be_a_second_moment_is_refused(value: float) -> None:
    hessian, _ = made(WIDTHS)
    hessian.blocks[1][1, 2, 2] = value
    with pytest.raises(InputError, match=r"not positive semi-definite .*calibrate again"):
        hessian.prepared(None, N_IN, 0.01)


def test_inputs_that_were_always_zero_leave_a_matrix_that_is_finite_and_not_zero() -> None:
    prepared = Hessian.of(torch.zeros(4, 4)).prepared(None, 4, 0.01)
    assert prepared.blocks[0].isfinite().all() and (prepared.diagonal > 0).all()


def test_identity_and_of() -> None:
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(3))
    assert Hessian.identity(4, groups=3).times(x).equal(x)
    matrix = torch.arange(16.0).reshape(4, 4)
    assert Hessian.of(matrix).rows(0, 4).equal(matrix[None])


@pytest.mark.parametrize("shape", [(4, 10), (4, 10, 3), (4, 7, 3, 3), (4, 64, 3, 3), (4, 1, 5, 5), (4, 33)])
@pytest.mark.parametrize("limit", [8, 9, 30, 8192])
def test_blocks_cover_whole_channels_evenly_below_the_limit(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], limit: int) -> None:
    monkeypatch.setattr(module, "MAX_BLOCK", limit)
    taps = torch.Size(shape[2:]).numel()
    edges = block_edges(shape)
    widths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    assert edges[0] == 0 and edges[-1] == shape[1] * taps
    assert all(width > 0 and width % taps == 0 for width in widths)
    assert all(width <= max(limit, taps) for width in widths)
    assert max(widths) - min(widths) <= taps
    if shape[1] * taps <= limit:
        assert len(widths) == 1
