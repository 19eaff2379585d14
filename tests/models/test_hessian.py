"""The block-diagonal Hessian and its factor do what dense matrices would do."""

from __future__ import annotations

import itertools

import pytest
import torch

from sedaq.errors import InputError
from sedaq.models import hessian as module
from sedaq.models.hessian import BlockDiagonal, Hessian, block_edges

GROUPS, WIDTHS = 2, (6, 3, 5)
N_IN = sum(WIDTHS)
RANGES = [(start, stop) for start in range(N_IN) for stop in range(start + 1, N_IN + 1)]
REFUSED = r"not positive semi-definite .*calibrate again"


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(widths: tuple[int, ...]) -> tuple[Hessian, torch.Tensor]:
    """A Hessian of positive definite blocks, and the dense matrix (groups, in, in)."""
    factors = [gaussian(GROUPS, width, width + 2, seed=i) for i, width in enumerate(widths)]
    hessian = Hessian(tuple(factor @ factor.transpose(1, 2) for factor in factors))
    return hessian, dense(hessian)


def dense(matrix: BlockDiagonal) -> torch.Tensor:
    return torch.stack([torch.block_diag(*(block[s] for block in matrix.blocks)) for s in range(matrix.groups)])


def with_spectrum(eigenvalues: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A symmetric matrix (1, n, n)."""
    rotation, _ = torch.linalg.qr(gaussian(len(eigenvalues), len(eigenvalues), seed=seed).double())
    return ((rotation * eigenvalues.double()) @ rotation.T).float().unsqueeze(0)


@pytest.fixture(params=[(N_IN,), WIDTHS], ids=["whole", "blocks"])
def pair(request: pytest.FixtureRequest) -> tuple[Hessian, torch.Tensor]:
    return made(request.param)


def test_sizes_and_diagonal(pair) -> None:
    hessian, matrix = pair
    assert (hessian.n_in, hessian.groups) == (N_IN, GROUPS)
    assert hessian.diagonal.equal(matrix.diagonal(dim1=1, dim2=2))


def test_windows_of_any_range_also_across_the_edges_of_blocks(pair) -> None:
    hessian, matrix = pair
    for start, stop in RANGES:
        assert hessian.window(start, stop).equal(matrix[:, start:stop, start:stop])


def test_times(pair) -> None:
    hessian, matrix = pair
    x = gaussian(GROUPS, 7, N_IN, seed=1)
    torch.testing.assert_close(hessian.times(x), x @ matrix)


def test_columns_of_a_product_of_any_range(pair) -> None:
    hessian, matrix = pair
    x = gaussian(GROUPS, 7, N_IN, seed=1)
    for start, stop in RANGES:
        torch.testing.assert_close(hessian.columns_times(x, start, stop), (x @ matrix)[:, :, start:stop])


@pytest.mark.parametrize("chosen", [[0], [1], [1, 0], [1, 1, 0]])
def test_of_some_conv_groups(pair, chosen: list[int]) -> None:
    hessian, matrix = pair
    assert dense(hessian.of_groups(torch.tensor(chosen))).equal(matrix[chosen])


def test_identity_and_of() -> None:
    x = gaussian(3, 2, 4, seed=3)
    assert Hessian.identity(4, groups=3).times(x).equal(x)
    matrix = torch.arange(16.0).reshape(4, 4)
    assert Hessian.of(matrix).window(0, 4).equal(matrix[None])
    assert Hessian.of(matrix.expand(5, 4, 4)).groups == 5


# -- prepared ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("n_padded", [N_IN, N_IN + 2])
def test_prepared_is_ordered_padded_in_units_of_its_mean_and_damped(pair, n_padded: int, damping: float) -> None:
    hessian, matrix = pair
    edges = [0, *itertools.accumulate(block.shape[-1] for block in hessian.blocks)]
    rng = torch.Generator().manual_seed(2)
    order = torch.cat([a + torch.randperm(b - a, generator=rng) for a, b in itertools.pairwise(edges)])
    expected = torch.zeros(GROUPS, n_padded, n_padded)
    expected[:, :N_IN, :N_IN] = matrix[:, order][:, :, order] / matrix.diagonal(dim1=1, dim2=2).mean()
    before = dense(hessian)
    prepared = hessian.prepared(order, damping).padded(n_padded, damping)
    assert prepared.n_in == n_padded
    torch.testing.assert_close(prepared.window(0, n_padded), expected + damping * torch.eye(n_padded))
    assert dense(hessian).equal(before)


def test_prepared_without_an_order_keeps_the_columns(pair) -> None:
    hessian, matrix = pair
    torch.testing.assert_close(hessian.prepared(None, 0.0).window(0, N_IN), matrix / matrix.diagonal(dim1=1, dim2=2).mean())


@pytest.mark.parametrize("size", [2.0**-40, 2.0**40])
def test_prepared_does_not_depend_on_the_unit_of_the_inputs(pair, size: float) -> None:
    hessian, _ = pair
    scaled = Hessian(tuple(size * block for block in hessian.blocks))
    assert dense(scaled.prepared(None, 0.01)).equal(dense(hessian.prepared(None, 0.01)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_matrix_that_cannot_be_a_second_moment_is_refused(value: float) -> None:
    hessian, _ = made(WIDTHS)
    hessian.blocks[1][1, 2, 2] = value
    with pytest.raises(InputError, match=REFUSED):
        hessian.prepared(None, 0.01)


@pytest.mark.parametrize("n_padded", [4, 6])
def test_inputs_that_were_always_zero_leave_the_identity(n_padded: int) -> None:
    prepared = Hessian.of(torch.zeros(2, 4, 4)).prepared(None, 0.01).padded(n_padded, 1.0)
    assert prepared.window(0, n_padded).equal(torch.eye(n_padded).expand(2, -1, -1))


# -- factor ------------------------------------------------------------------------------------------------------------------------------


def test_the_factor_is_upper_triangular_and_its_square_the_hessian(pair) -> None:
    hessian, matrix = pair
    factor = hessian.factor()
    c = dense(factor)
    assert [block.shape for block in factor.blocks] == [block.shape for block in hessian.blocks]
    assert c.equal(c.triu()) and (factor.diagonal > 0).all()
    torch.testing.assert_close(c @ c.transpose(1, 2), matrix, rtol=1e-5, atol=1e-5)
    e = gaussian(GROUPS, 9, N_IN, seed=5)
    torch.testing.assert_close(factor.times(e).square().sum(2), (hessian.times(e) * e).sum(2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_a_damped_factor_is_that_of_blocks_with_a_share_of_their_mean_added(pair, damping: float) -> None:
    hessian, _ = pair
    for block, factor in zip(hessian.blocks, hessian.factor(damping).blocks, strict=True):
        added = damping * block.diagonal(dim1=1, dim2=2).mean() * torch.eye(block.shape[-1])
        torch.testing.assert_close(factor @ factor.transpose(1, 2), block + added, rtol=1e-5, atol=1e-5)


def test_a_column_of_an_errors_product_sees_no_later_error(pair) -> None:
    factor, e = pair[0].factor(), gaussian(GROUPS, 9, N_IN, seed=5)
    for start, stop in RANGES:
        cut = e.clone()
        cut[:, :, stop:] = 0
        torch.testing.assert_close(factor.columns_times(cut, start, stop), factor.times(e)[:, :, start:stop])


def test_the_factors_windows_straddle_the_edges_of_blocks(pair) -> None:
    factor = pair[0].factor()
    c = dense(factor)
    assert all(factor.window(start, stop).equal(c[:, start:stop, start:stop]) for start, stop in RANGES)


@pytest.mark.parametrize("rank", [1, 5, 15])
@pytest.mark.parametrize("seed", range(3))
def test_fewer_tokens_than_inputs_are_accepted(rank: int, seed: int) -> None:
    """Rounding makes such a matrix indefinite by about 1e-7."""
    x = gaussian(GROUPS, rank, 16, seed=seed)
    h = x.transpose(1, 2) @ x / rank
    c = dense(Hessian.of(h).factor())
    assert c.isfinite().all()
    assert (c @ c.transpose(1, 2) - h).abs().max() < 1e-4 * h.diagonal(dim1=1, dim2=2).mean(1).max()


@pytest.mark.parametrize("lowest", [-1e-7, -1e-5, -1e-3, -5e-3])
def test_slightly_indefinite_matrices_are_accepted_with_as_small_a_ridge_as_it_takes(lowest: float) -> None:
    h = with_spectrum(torch.tensor([lowest, 0.1, 0.4, 1.0, 1.0, 3.5]))  # mean of the diagonal: one
    c = dense(Hessian.of(h).factor())
    added = c @ c.transpose(1, 2) - h
    torch.testing.assert_close(added, added[0, 0, 0] * torch.eye(6)[None], rtol=0, atol=3e-6)
    assert -lowest - 3e-6 < added[0, 0, 0] < 10 * -lowest + 3e-6


@pytest.mark.parametrize("lowest", [-0.02, -0.5, -3.0])
@pytest.mark.parametrize("widths", [(6,), (4, 6), (6, 4)])
@pytest.mark.parametrize("bad", [0, 1])
def test_truly_indefinite_matrices_are_refused(lowest: float, widths: tuple[int, ...], bad: int) -> None:
    """Also where it is one block of several, or one conv group."""
    blocks = [torch.eye(width).repeat(GROUPS, 1, 1) for width in widths]
    blocks[widths.index(6)][bad] = with_spectrum(torch.tensor([lowest, 0.1, 0.4, 1.0, 1.0, 3.5]))[0]
    hessian = Hessian(tuple(blocks))
    with pytest.raises(InputError, match=REFUSED):
        hessian.factor()
    other = Hessian(hessian.of_groups(torch.tensor([1 - bad])).blocks)
    torch.testing.assert_close(dense(other.factor())[0], torch.eye(sum(widths)))


def test_the_ridge_is_in_units_of_the_matrix() -> None:
    h = with_spectrum(torch.tensor([-1e-3, 0.1, 0.4, 1.0, 1.0, 3.5]))
    for size in (1e-6, 1e6):
        c = dense(Hessian.of(size * h).factor())
        torch.testing.assert_close(c @ c.transpose(1, 2) / size, h, rtol=0, atol=0.011)


# -- edges of blocks ---------------------------------------------------------------------------------------------------------------------


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
