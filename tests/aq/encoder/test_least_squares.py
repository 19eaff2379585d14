"""Codebooks and scales against dense least squares."""

from __future__ import annotations

import pytest
import torch

from sedaq.aq.encoder import beam
from sedaq.aq.encoder.beam import Beam, sum_of
from sedaq.aq.encoder.kmeans import residual_kmeans
from sedaq.aq.encoder.least_squares import fit_codebooks
from sedaq.aq.encoder.part import Part, sum_by_code, total
from sedaq.aq.formats import Format
from sedaq.models.hessian import Hessian

STRUCTURES = ["1x4g4", "2x3g4", "1x4g4m", "2x4g4m", "1x4g4h", "2x4g4h", "1x4g4q"]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(*widths: int, groups: int = 1, seed: int = 1) -> Hessian:
    """Blocks of correlated second moments, as the encoder prepares them."""
    blocks = []
    for i, width in enumerate(widths):
        x = gaussian(groups, 4 * width, width, seed=seed + i) @ (torch.eye(width) + 0.3 * gaussian(width, width, seed=seed + i + 1))
        blocks.append(x.transpose(1, 2) @ x / x.shape[1])
    return Hessian(tuple(blocks)).prepared(None, 1e-3)


def part(rows: int = 12, widths: tuple[int, ...] = (16,), groups: int = 1, seed: int = 0) -> Part:
    hessian = correlated(*widths, groups=groups, seed=seed + 1)
    return Part(gaussian(groups, rows, sum(widths), seed=seed), hessian, hessian.factor())


PARTS = {
    "one": lambda: [part()],
    "two that share a Hessian": lambda: split(part(17), 5),
    "several layers": lambda: [part(9), part(6, (12,), seed=5), part(10, (8, 8), seed=9)],
    "conv groups": lambda: [part(5, (8,), groups=3), part(4, (8,), groups=2, seed=3)],
    "blocks that groups straddle": lambda: [part(12, (6, 7, 3))],
}


def split(whole: Part, at: int) -> list[Part]:
    return [Part(w, whole.hessian, whole.factor) for w in (whole.w[:, :at], whole.w[:, at:])]


def encoded(parts: list[Part], format: Format) -> torch.Tensor:
    """Stored vectors, and codes chosen under them."""
    stored = residual_kmeans(parts, format, 5, 1 << 20, torch.Generator().manual_seed(0))
    for p in parts:
        p.codes, _ = beam.encode(p.w, p.scales, p.factor, format.expansion @ stored, Beam(8, 1))
    return stored


def error(parts: list[Part], format: Format, stored: torch.Tensor) -> float:
    return sum(p.error(format.expansion @ stored) for p in parts)


def dense(parts: list[Part], format: Format, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights as a linear function of the stored vectors: matrix (weights, unknowns) and right-hand side, both times H^(1/2)."""
    units = torch.eye(stored.numel()).unflatten(1, stored.shape)
    matrix, target = [], []
    for p in parts:
        h = torch.stack([torch.block_diag(*(block[s].double() for block in p.hessian.blocks)) for s in range(p.hessian.groups)])
        root = torch.linalg.cholesky(h)
        columns = [(sum_of(format.expansion @ unit, p.codes) * p.scales).double() @ root for unit in units]
        matrix.append(torch.stack([column.reshape(-1) for column in columns], 1))
        target.append((p.w.double() @ root).reshape(-1))
    return torch.cat(matrix), torch.cat(target)


def least_squares(parts: list[Part], format: Format, stored: torch.Tensor) -> tuple[torch.Tensor, float]:
    matrix, target = dense(parts, format, stored)
    best = torch.linalg.lstsq(matrix, target, driver="gelsd").solution
    return best, (matrix @ best - target).square().sum().item()


# -- codebooks ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", PARTS)
@pytest.mark.parametrize("text", STRUCTURES)
def test_codebooks_are_the_least_squares_optimum(text, which):
    format, parts = Format.parse(text), PARTS[which]()
    stored = encoded(parts, format)
    _, least = least_squares(parts, format, stored)
    before = error(parts, format, stored)
    fitted = fit_codebooks(parts, stored, format, iterations=200)
    assert fitted.shape == stored.shape
    assert error(parts, format, fitted) == pytest.approx(least, rel=1e-3)
    assert error(parts, format, fitted) < before


@pytest.mark.parametrize("which", PARTS)
def test_a_free_codebook_has_one_solution_where_it_is_used(which):
    format, parts = Format.parse("1x4g4"), PARTS[which]()
    stored = encoded(parts, format)
    best, _ = least_squares(parts, format, stored)
    fitted = fit_codebooks(parts, stored, format, iterations=400)
    used = sum(torch.bincount(p.codes.reshape(-1), minlength=16) for p in parts) > 0
    torch.testing.assert_close(fitted[0, used], best.reshape(stored.shape)[0, used].float(), atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("which", PARTS)
@pytest.mark.parametrize("text", STRUCTURES)
def test_the_default_number_of_iterations_comes_close(text, which):
    format, parts = Format.parse(text), PARTS[which]()
    stored = encoded(parts, format)
    _, least = least_squares(parts, format, stored)
    start = error(parts, format, stored)
    assert error(parts, format, fit_codebooks(parts, stored, format)) - least < 0.02 * (start - least)


@pytest.mark.parametrize("text", ["1x4g4", "1x4g4m"])
def test_vectors_that_carry_very_different_weight_are_fitted_as_fast(text):
    format, p = Format.parse(text), part(40, (32,))
    often = torch.logspace(0, -2.5, 16).expand(40 * 8, 16)
    p.codes = often.multinomial(1, generator=torch.Generator().manual_seed(0)).view(1, 40, 8, 1)
    p.scales = p.scales * torch.logspace(-1.5, 1.5, 40).view(1, -1, 1)
    stored = gaussian(1, format.n_stored_entries, 4, seed=3)
    _, least = least_squares([p], format, stored)
    start = error([p], format, stored)
    assert error([p], format, fit_codebooks([p], stored, format)) - least < 1e-3 * (start - least)


@pytest.mark.parametrize("text", ["1x4g4", "2x4g4m", "2x4g4h"])
def test_rows_in_several_parts_give_what_they_give_in_one(text):
    format, whole = Format.parse(text), part(17)
    stored = encoded([whole], format)
    parts = split(whole, 5)
    for p, rows in zip(parts, (slice(0, 5), slice(5, 17)), strict=True):
        p.codes, p.scales = whole.codes[:, rows], whole.scales[:, rows]
    together, apart = fit_codebooks([whole], stored, format), fit_codebooks(parts, stored, format)
    torch.testing.assert_close(together, apart, atol=2e-3, rtol=2e-3)
    assert error([whole], format, apart) == pytest.approx(error([whole], format, together), rel=1e-4)


def test_codebooks_for_layers_together_are_between_those_for_each():
    """One codebook for two layers serves each worse than its own, and both better than the other's."""
    format, (first, second) = Format.parse("1x3g4"), (part(20), part(20, (12,), seed=5))
    stored = encoded([first, second], format)
    own, foreign, shared = (fit_codebooks(parts, stored, format, 200) for parts in ([first], [second], [first, second]))
    assert error([first], format, own) < error([first], format, shared) < error([first], format, foreign)


@pytest.mark.parametrize("text", STRUCTURES)
def test_a_solution_stays_one(text):
    format, parts = Format.parse(text), [part()]
    fitted = fit_codebooks(parts, encoded(parts, format), format, iterations=400)
    again = fit_codebooks(parts, fitted, format)
    assert error(parts, format, again) == pytest.approx(error(parts, format, fitted), rel=1e-3)


def test_vectors_that_nothing_uses_stay_where_they_are():
    format, parts = Format.parse("2x5g4"), [part(3)]
    stored = encoded(parts, format)
    unused = torch.stack([torch.bincount(parts[0].codes[..., m].reshape(-1), minlength=32) == 0 for m in range(2)])
    fitted = fit_codebooks(parts, stored, format)
    assert unused.any() and torch.equal(fitted[unused], stored[unused])
    assert not torch.equal(fitted[~unused], stored[~unused])


def test_rows_of_scale_zero_do_not_count():
    format, p = Format.parse("1x3g4"), part(12)
    stored = encoded([p], format)
    other = Part(torch.cat([p.w, torch.zeros(1, 2, 16)], 1), p.hessian, p.factor)
    other.codes = torch.cat([p.codes, torch.zeros_like(p.codes[:, :2])], 1)
    assert torch.equal(other.scales[:, 12:], torch.zeros(1, 2, 1))
    torch.testing.assert_close(fit_codebooks([other], stored, format), fit_codebooks([p], stored, format))


def test_nothing_but_zeros_leaves_finite_codebooks():
    format, hessian = Format.parse("1x3g4"), correlated(8)
    p = Part(torch.zeros(1, 5, 8), hessian, hessian.factor())
    p.codes = torch.zeros(1, 5, 2, 1, dtype=torch.long)
    stored = gaussian(1, 8, 4)
    torch.testing.assert_close(fit_codebooks([p], stored, format), stored)


def test_the_vectors_that_are_given_stay_as_they_are():
    format, parts = Format.parse("1x4g4"), [part()]
    stored = encoded(parts, format)
    before = stored.clone()
    fit_codebooks(parts, stored, format)
    assert torch.equal(stored, before)


# -- parts -------------------------------------------------------------------------------------------------------------------------------


def test_scales_are_the_closed_form_of_each_row():
    format, p = Format.parse("1x4g4"), part(groups=2)
    books = format.expansion @ encoded([p], format)
    p.update_scales(books)
    words = sum_of(books, p.codes).double()
    for s in range(2):
        h = p.hessian.blocks[0][s].double()
        for row, (w, u) in enumerate(zip(p.w[s].double(), words[s], strict=True)):
            assert p.scales[s, row].item() == pytest.approx(((w @ h @ u) / (u @ h @ u)).item(), rel=1e-4)
            grid = p.scales[s, row].item() * torch.linspace(0.9, 1.1, 21, dtype=torch.float64)
            assert torch.stack([(a * u - w) @ h @ (a * u - w) for a in grid]).argmin() == 10


def test_a_row_whose_scale_came_out_negative_is_still_fitted():
    """Coarse codewords may point away from a row in the metric of strongly correlated inputs."""
    format, p = Format.parse("1x4g4"), part()
    books = format.expansion @ encoded([p], format)
    p.update_scales(books)
    wanted = p.scales.clone()
    p.scales[0, ::2] *= -0.5
    p.update_scales(books)
    torch.testing.assert_close(p.scales, wanted)


def test_zero_rows_keep_scale_zero_and_rows_of_zero_codewords_their_scale():
    format, hessian = Format.parse("1x3g4"), correlated(8)
    w = gaussian(1, 6, 8)
    w[0, 2] = 0
    p = Part(w, hessian, hessian.factor())
    assert not p.has_codes and (p.scales[0, :, 0] == 0).tolist() == [False, False, True, False, False, False]
    books = format.expansion @ encoded([p], format)
    assert p.has_codes
    p.update_scales(books)
    assert p.scales[0, 2] == 0 and p.scales.isfinite().all()
    before = p.scales
    p.update_scales(torch.zeros_like(books))
    assert torch.equal(p.scales, before)


@pytest.mark.parametrize("which", PARTS)
def test_the_error_of_a_part_is_the_dense_one(which):
    format, parts = Format.parse("2x3g4"), PARTS[which]()
    stored = encoded(parts, format)
    matrix, target = dense(parts, format, stored)
    assert error(parts, format, stored) == pytest.approx((matrix @ stored.double().reshape(-1) - target).square().sum().item(), rel=1e-4)


def test_sums_over_the_places_of_each_codeword():
    format, p = Format.parse("2x3g4"), part(5, (8,), groups=2)
    encoded([p], format)
    values = gaussian(2, 5, 8, seed=8)
    wanted = torch.zeros(2, 8, 4)
    for s, r, j, m in torch.cartesian_prod(torch.arange(2), torch.arange(5), torch.arange(2), torch.arange(2)).tolist():
        wanted[m, p.codes[s, r, j, m]] += values[s, r, 4 * j : 4 * j + 4]
    torch.testing.assert_close(sum_by_code(p, values, (2, 8, 4)), wanted)


def test_a_total_leaves_its_terms_alone():
    terms = [torch.ones(3), torch.arange(3.0), torch.full((3,), 4.0)]
    assert total(terms).tolist() == [5, 6, 7] and terms[0].tolist() == [1, 1, 1]
    assert total(terms[:1]) is not terms[0]
