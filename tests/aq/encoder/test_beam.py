"""Codes against exhaustive search, error feedback against none, and sweeps that never make a row worse."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sedaq.aq.encoder import beam
from sedaq.aq.encoder.beam import Beam, best_codes, smallest, sum_of
from sedaq.models.hessian import Hessian

EVERYTHING = Beam(1 << 20, 1 << 20)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(n: int, seed: int = 1, groups: int = 1) -> torch.Tensor:
    """Correlated second moments (groups, n, n)."""
    x = gaussian(groups, 4 * n, n, seed=seed) @ (torch.eye(n) + 0.3 * gaussian(n, n, seed=seed + 1))
    return x.transpose(1, 2) @ x / x.shape[1]


def correlated(*widths: int, groups: int = 1) -> Hessian:
    return Hessian(tuple(moment(width, 10 + i, groups) for i, width in enumerate(widths)))


def dense(hessian: Hessian) -> torch.Tensor:
    """(groups, n, n), double."""
    return torch.stack([torch.block_diag(*(block[s].double() for block in hessian.blocks)) for s in range(hessian.groups)])


def row_errors(w: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, hessian: Hessian) -> torch.Tensor:
    """e H eᵀ of each row, (S, R)."""
    e = (scales * words - w).double()
    return ((e @ dense(hessian)) * e).sum(2)


def random_codes(rows: int, n_groups: int, m: int, k: int, s: int = 1) -> torch.Tensor:
    return torch.randint(k, (s, rows, n_groups, m), generator=torch.Generator().manual_seed(4))


def nearest(w: torch.Tensor, scales: torch.Tensor, hessian: Hessian, books: torch.Tensor, within: int) -> torch.Tensor:
    """Sums of codewords when every group is chosen for itself, in the metric of its own block."""
    g = books.shape[2]
    words = []
    for a in range(0, w.shape[2], g):
        block = hessian.window(a, a + g)
        words.append(best_codes(-w[:, :, a : a + g] @ block, block, scales, books, within)[1])
    return torch.cat(words, 2)


# -- the n smallest ----------------------------------------------------------------------------------------------------------------------


def check_smallest(values: torch.Tensor, n: int) -> None:
    found, place = smallest(values, n)
    wanted = values.sort(1).values[:, :n]
    assert found.shape == place.shape == wanted.shape
    assert torch.equal(found.sort(1).values, wanted) and torch.equal(values.gather(1, place), found)
    assert all(len(set(row)) == len(row) for row in place.tolist())


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 31, 32, 128, 300])
@pytest.mark.parametrize("width", [1, 2, 31, 32, 33, 127, 128, 129, 160, 192, 256, 1000, 1023, 1024, 1040, 4096, 5120])
@pytest.mark.parametrize("ties", [False, True])
def test_smallest_is_the_beginning_of_the_sorted_row(width, n, ties):
    values = gaussian(6, width, seed=width)
    check_smallest((4 * values).round() if ties else values, n)


@given(count=st.integers(1, 5), width=st.integers(1, 1500), n=st.integers(1, 40), levels=st.integers(1, 50), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_smallest_of_any_shape_with_ties(count, width, n, levels, seed):
    check_smallest(torch.randint(levels, (count, width), generator=torch.Generator().manual_seed(seed)).float(), n)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("first", ["rising", "falling"])
def test_smallest_where_all_of_them_share_a_fold(n, first):
    """Places that are a fold's width apart fall into one fold."""
    depth, width = 16, 2048
    values = torch.full((1, width), 10.0)
    values[0, 5 :: width // depth] = torch.arange(depth).float() if first == "rising" else torch.arange(depth).flip(0).float()
    check_smallest(values, n)


# -- one group ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k", "g"), [(1, 8, 3), (1, 5, 2), (2, 6, 3), (2, 4, 1), (1, 1100, 2)])
def test_codes_of_a_group_equal_exhaustive_search(m, k, g):
    """Beam search is exact for one codebook, and for two where the beam holds all of the first."""
    s, r = 2, 5
    linear, books, scales = gaussian(s, r, g), gaussian(m, k, g, seed=1), gaussian(s, r, 1, seed=2)
    block = moment(g, 3, s)
    codes, words = best_codes(linear, block, scales, books, beam=k)
    choices = torch.cartesian_prod(*[torch.arange(k)] * m).reshape(-1, m)
    u = sum(books[n][choices[:, n]] for n in range(m))
    x = scales.unsqueeze(2) * u  # (s, r, choices, g)
    energies = (2 * (x * linear.unsqueeze(2)) + (x @ block.unsqueeze(1)) * x).sum(3)
    place = (codes * k ** torch.arange(m).flip(0)).sum(2)
    torch.testing.assert_close(energies.gather(2, place.unsqueeze(2)).squeeze(2), energies.amin(2))
    torch.testing.assert_close(words, u[place])


def test_a_wider_beam_between_codebooks_is_better_on_average():
    linear, books = gaussian(1, 400, 4), 0.7 * gaussian(3, 8, 4, seed=1)
    block, scales = torch.eye(4).unsqueeze(0), torch.ones(1, 400, 1)
    energies = []
    for kept in (1, 2, 8, 64):
        _, words = best_codes(linear, block, scales, books, kept)
        energies.append((2 * (words * linear).sum() + words.square().sum()).item())
    assert energies == sorted(energies, reverse=True) and energies[-1] < energies[0]


def test_sums_of_codewords():
    books, codes = gaussian(3, 5, 2), random_codes(4, 6, 3, 5, s=2)
    before = books.clone()
    words = sum_of(books, codes)
    assert words.shape == (2, 4, 12) and torch.equal(books, before)
    for s, r, j in itertools.product(range(2), range(4), range(6)):
        torch.testing.assert_close(words[s, r, 2 * j : 2 * j + 2], sum(books[m, codes[s, r, j, m]] for m in range(3)))


# -- a row from nothing ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "k", "g", "n_groups"), [(1, 4, 2, 5), (1, 9, 3, 3), (2, 3, 2, 3), (3, 2, 1, 4), (2, 5, 4, 2), (1, 300, 2, 2)]
)
@pytest.mark.parametrize("blocks", [1, 2])
def test_an_unbounded_beam_equals_exhaustive_search(m, k, g, n_groups, blocks):
    s, r, n = 2, 3, g * n_groups
    hessian = correlated(n, groups=s) if blocks == 1 else correlated(n // 2, n - n // 2, groups=s)
    w, books, scales = gaussian(s, r, n), gaussian(m, k, g, seed=1) / m**0.5, gaussian(s, r, 1, seed=2)
    codes, words = beam.encode(w, scales, hessian.factor(), books, EVERYTHING)
    torch.testing.assert_close(words, sum_of(books, codes))

    choices = torch.cartesian_prod(*[torch.arange(k)] * (m * n_groups)).reshape(1, -1, n_groups, m)
    every = sum_of(books, choices)  # (1, choices, n)
    least = torch.empty(s, r, dtype=torch.float64)
    for i, j in itertools.product(range(s), range(r)):
        group = Hessian(tuple(block[i : i + 1] for block in hessian.blocks))
        least[i, j] = row_errors(w[i : i + 1, j : j + 1], every, scales[i, j], group).min()
    torch.testing.assert_close(row_errors(w, words, scales, hessian), least, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("m", "beams"), [(1, [Beam(1, b) for b in (1, 2, 8, 32)]), (3, [Beam(b, 1) for b in (1, 4, 16)])])
def test_a_wider_beam_lowers_the_mean_error(m, beams):
    hessian, w, books = correlated(24), gaussian(1, 300, 24), gaussian(m, 8, 2, seed=1) / m
    scales = torch.ones(1, 300, 1)
    errors = [row_errors(w, beam.encode(w, scales, hessian.factor(), books, kept)[1], scales, hessian).mean().item() for kept in beams]
    assert all(after < before for before, after in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.97 * errors[0]


@pytest.mark.parametrize(("m", "k"), [(1, 64), (2, 8)])
def test_error_feedback_beats_choosing_groups_independently(m, k):
    """With neighbours' correlation ρ and fine codebooks the error falls by √(1 − ρ²) for groups of two."""
    correlation = 0.95 ** (torch.arange(32).unsqueeze(1) - torch.arange(32)).abs()
    hessian, w, books = Hessian.of(correlation), gaussian(1, 300, 32), gaussian(m, k, 2, seed=1) / m**0.5
    scales = w.square().mean(2, keepdim=True).sqrt()
    alone = row_errors(w, nearest(w, scales, hessian, books, 8), scales, hessian)
    fed = row_errors(w, beam.encode(w, scales, hessian.factor(), books, Beam(8, 1))[1], scales, hessian)
    assert fed.sum() < 0.5 * alone.sum() and (fed < alone).float().mean() > 0.9


@pytest.mark.parametrize("kept", [Beam(8, 1), Beam(8, 3)])
def test_groups_without_correlation_are_chosen_independently(kept):
    hessian, w, books = correlated(4, 4, 4, 4, groups=2), gaussian(2, 20, 16), gaussian(2, 8, 4, seed=1)
    scales = gaussian(2, 20, 1, seed=2).abs() + 0.1
    _, words = beam.encode(w, scales, hessian.factor(), books, kept)
    torch.testing.assert_close(words, nearest(w, scales, hessian, books, 8))


@pytest.mark.parametrize("widths", [(24,), (10, 7, 7)])
@pytest.mark.parametrize("window", [1, 4, 8, 12, 20])
def test_windows_do_not_change_error_feedback(monkeypatch, window, widths):
    hessian, w, books = correlated(*widths, groups=2), gaussian(2, 30, 24), gaussian(2, 8, 4, seed=1)
    scales = torch.ones(2, 30, 1)
    wanted, _ = beam.encode(w, scales, hessian.factor(), books, Beam(8, 1))
    monkeypatch.setattr(beam, "WINDOW", window)
    codes, words = beam.encode(w, scales, hessian.factor(), books, Beam(8, 1))
    assert torch.equal(codes, wanted)
    torch.testing.assert_close(words, sum_of(books, codes))


@pytest.mark.parametrize("window", [4, 8, 24])
def test_hypotheses_are_told_apart_within_each_window(monkeypatch, window):
    """The wider beam is of use in short windows too, and codes and sums belong together."""
    hessian, w, books = correlated(24), gaussian(1, 300, 24), gaussian(1, 8, 2, seed=1)
    scales = torch.ones(1, 300, 1)
    monkeypatch.setattr(beam, "WINDOW", window)
    (_, greedy), (codes, words) = (beam.encode(w, scales, hessian.factor(), books, Beam(1, b)) for b in (1, 8))
    torch.testing.assert_close(words, sum_of(books, codes))
    assert row_errors(w, words, scales, hessian).sum() < row_errors(w, greedy, scales, hessian).sum()


# -- one group given all others ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("kept", [1, 4])
@pytest.mark.parametrize("start", ["random", "fed"])
def test_no_row_gets_worse(m, kept, start):
    hessian, w, books = correlated(10, 14, groups=2), gaussian(2, 40, 24), gaussian(m, 8, 4, seed=1) / m**0.5
    scales = 0.5 + gaussian(2, 40, 1, seed=2).abs()
    codes = random_codes(40, 6, m, 8, s=2)
    if start == "fed":
        codes, _ = beam.encode(w, scales, hessian.factor(), books, Beam(kept, 1))
    first = before = row_errors(w, sum_of(books, codes), scales, hessian)
    for _ in range(4):
        codes, words = beam.improve(w, scales, hessian, books, codes, kept)
        torch.testing.assert_close(words, sum_of(books, codes))
        after = row_errors(w, words, scales, hessian)
        assert (after <= before * (1 + 1e-5) + 1e-5).all()
        before = after
    assert before.sum() < 0.99 * first.sum()


def test_the_codes_that_are_given_stay_as_they_are():
    hessian, w, books, codes = correlated(12), gaussian(1, 9, 12), gaussian(1, 8, 4, seed=1), random_codes(9, 3, 1, 8)
    before = codes.clone()
    found, _ = beam.improve(w, torch.ones(1, 9, 1), hessian, books, codes, 1)
    assert torch.equal(codes, before) and not torch.equal(found, before)


def test_in_the_end_no_single_group_can_do_better():
    k, g, n_groups = 6, 3, 4
    hessian, w, books = correlated(12), gaussian(1, 15, 12), gaussian(1, k, g, seed=1)
    scales, codes = torch.ones(1, 15, 1), random_codes(15, n_groups, 1, k)
    for _ in range(20):
        codes, words = beam.improve(w, scales, hessian, books, codes, 1)
    reached = row_errors(w, words, scales, hessian)
    for j, entry in itertools.product(range(n_groups), range(k)):
        other = codes.clone()
        other[:, :, j] = entry
        assert (row_errors(w, sum_of(books, other), scales, hessian) >= reached * (1 - 1e-5)).all()


@pytest.mark.parametrize("widths", [(24,), (10, 7, 7)])
@pytest.mark.parametrize("window", [1, 4, 8, 12, 20])
def test_windows_do_not_change_improvement(monkeypatch, window, widths):
    hessian, w, books = correlated(*widths, groups=2), gaussian(2, 30, 24), gaussian(2, 8, 4, seed=1)
    scales, start = torch.ones(2, 30, 1), random_codes(30, 6, 2, 8, s=2)
    wanted, _ = beam.improve(w, scales, hessian, books, start, 8)
    monkeypatch.setattr(beam, "WINDOW", window)
    codes, words = beam.improve(w, scales, hessian, books, start, 8)
    assert torch.equal(codes, wanted)
    torch.testing.assert_close(words, sum_of(books, codes))


def test_rows_of_scale_zero_stay_exact():
    hessian, w, books, codes = correlated(12), gaussian(1, 9, 12), gaussian(1, 8, 4, seed=1), random_codes(9, 3, 1, 8)
    scales = torch.ones(1, 9, 1)
    scales[0, 4] = w[0, 4] = 0
    for found, words in (
        beam.improve(w, scales, hessian, books, codes, 1),
        beam.encode(w, scales, hessian.factor(), books, Beam(1, 2)),
    ):
        assert ((found >= 0) & (found < 8)).all() and torch.equal(words, sum_of(books, found))
        assert row_errors(w, words, scales, hessian)[0, 4] == 0
