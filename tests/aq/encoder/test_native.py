"""The encoder's C++ loops: against exhaustive search and closed forms, against torch, and equal to the bit for any number of threads."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch

from sedaq.aq.encoder import beam, native
from sedaq.aq.encoder.beam import Beam, sum_of
from sedaq.aq.encoder.encoder import encode, relative_error
from sedaq.aq.encoder.kmeans import Cloud, kmeans
from sedaq.aq.encoder.part import Part
from sedaq.aq.formats import Format
from sedaq.errors import InputError
from sedaq.models.hessian import Hessian, upper_cholesky

pytestmark = pytest.mark.skipif(native.library() is None, reason="the C++ encoder was not built here")

ISAS = ("portable", "avx2", "avx512")
# Conv groups, rows, widths of H's blocks, codebooks, codewords, group size.
SHAPES = [
    (1, 50, (64,), 1, 16, 4),
    (1, 1, (12,), 1, 4, 4),
    (1, 33, (40, 26), 1, 64, 3),
    (2, 20, (160,), 2, 16, 8),
    (2, 9, (7, 23), 3, 5, 5),
    (40, 1, (12,), 1, 16, 4),
    (1, 30, (100, 160), 1, 300, 2),
    (1, 30, (96,), 4, 16, 32),
    (3, 13, (126,), 6, 8, 6),
    (1, 7, (256,), 1, 600, 8),
]
BEAMS = [Beam(1, 1), Beam(8, 1), Beam(1, 2), Beam(3, 4), Beam(40, 1)]


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch) -> str:
    monkeypatch.setenv("SEDAQ_MAX_ISA", request.param)
    if native.isa() != ISAS.index(request.param):
        pytest.skip("not on this processor")
    return request.param


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(*widths: int, groups: int = 1) -> Hessian:
    blocks = []
    for i, n in enumerate(widths):
        x = gaussian(groups, 4 * n, n, seed=10 + i) @ (torch.eye(n) + 0.3 * gaussian(n, n, seed=11 + i))
        blocks.append(x.transpose(1, 2) @ x / x.shape[1])
    return Hessian(tuple(blocks))


def problem(s: int, r: int, widths: tuple[int, ...], m: int, k: int, g: int) -> tuple[torch.Tensor, torch.Tensor, Hessian, torch.Tensor]:
    """w, scales (one of them zero, with its row), H and codebooks."""
    w, scales = gaussian(s, r, sum(widths)), gaussian(s, r, 1, seed=2)
    if r > 3:
        w[:, 2] = scales[:, 2] = 0
    return w, scales, correlated(*widths, groups=s), gaussian(m, k, g, seed=1) / m**0.5


def row_errors(w: torch.Tensor, scales: torch.Tensor, hessian: Hessian, books: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    h = torch.stack([torch.block_diag(*(block[s].double() for block in hessian.blocks)) for s in range(hessian.groups)])
    e = (scales * sum_of(books, codes) - w).double()
    return ((e @ h) * e).sum(2)


def agree(found: torch.Tensor, wanted: torch.Tensor, scales: torch.Tensor) -> bool:
    """Equal codes but for ties, which rounding decides, and rows of scale zero, where all are one."""
    counts = (scales != 0).squeeze(2)
    return (found[counts] == wanted[counts]).float().mean() > 0.995


def encoded(shape: tuple[int, int, tuple[int, ...], int, int, int]) -> Part:
    w, scales, hessian, books = problem(*shape)
    part = Part(w, hessian, hessian.factor())
    part.scales = scales
    part.codes = torch.randint(len(books[0]), (*w.shape[:2], w.shape[2] // shape[5], shape[3]), generator=torch.Generator().manual_seed(3))
    return part


# -- codes -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k", "g", "n_groups"), [(1, 4, 2, 5), (1, 9, 3, 3), (2, 3, 2, 3), (3, 2, 1, 4), (2, 5, 4, 2), (1, 70, 2, 2)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_an_unbounded_beam_equals_exhaustive_search(isa, m, k, g, n_groups, blocks):
    n = g * n_groups
    w, scales, hessian, books = problem(2, 3, (n,) if blocks == 1 else (n // 2, n - n // 2), m, k, g)
    codes = native.encode(w, scales, hessian.factor(), books, Beam(1 << 20, 1 << 20))
    choices = torch.cartesian_prod(*[torch.arange(k)] * (m * n_groups)).reshape(1, -1, n_groups, m)
    for i, j in itertools.product(range(2), range(3)):
        group, row = Hessian(tuple(block[i : i + 1] for block in hessian.blocks)), (slice(i, i + 1), slice(j, j + 1))
        least = row_errors(w[row].expand(1, choices.shape[1], n), scales[row], group, books, choices).min()
        found = row_errors(w[row], scales[row], group, books, codes[row])
        torch.testing.assert_close(found.squeeze(), least, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", BEAMS)
def test_codes_with_error_feedback_are_those_of_torch(isa, shape, kept):
    w, scales, hessian, books = problem(*shape)
    factor = hessian.factor()
    wanted, _ = beam.encode(w, scales, factor, books, kept)
    found = native.encode(w, scales, factor, books, kept)
    assert agree(found, wanted, scales)
    errors = (row_errors(w, scales, hessian, books, codes).sum() for codes in (found, wanted))
    torch.testing.assert_close(*errors, rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("within", [1, 8, 40])
def test_improved_codes_are_those_of_torch_and_no_row_gets_worse(isa, shape, within):
    (w, scales, hessian, books), start = problem(*shape), encoded(shape).codes
    wanted, _ = beam.improve(w, scales, hessian, books, start, within)
    before = start.clone()
    found = native.improve(w, scales, hessian, books, start, within)
    assert torch.equal(start, before) and agree(found, wanted, scales)
    after = row_errors(w, scales, hessian, books, found)
    assert (after <= row_errors(w, scales, hessian, books, start) * (1 + 1e-5) + 1e-5).all()


def test_of_equal_codewords_the_first_is_taken(isa):
    books = gaussian(1, 5, 4).repeat(1, 30, 1)
    w, hessian = gaussian(1, 20, 24), correlated(24)
    scales = torch.ones(1, 20, 1)
    assert native.encode(w, scales, hessian.factor(), books, Beam(1, 1)).max() < 5
    assert native.improve(w, scales, hessian, books, torch.zeros(1, 20, 6, 1, dtype=torch.long), 1).max() < 5


def test_memory_laid_out_otherwise(isa):
    w, scales, hessian, books = problem(2, 20, (24,), 2, 16, 4)
    other = Hessian((hessian.blocks[0].transpose(1, 2).contiguous().transpose(1, 2),))
    wanted = native.encode(w, scales, hessian.factor(), books, Beam(4, 2))
    spread = torch.empty(2, 24, 20, 2)[..., 0].transpose(1, 2).copy_(w)
    factor = other.factor()
    column_major = type(factor)((factor.blocks[0].transpose(1, 2).contiguous().transpose(1, 2),))
    found = native.encode(
        spread, scales.expand(2, 20, 2)[..., :1], column_major, books.transpose(0, 1).contiguous().transpose(0, 1), Beam(4, 2)
    )
    assert torch.equal(found, wanted)
    codes = torch.empty(2, 6, 2, 20, dtype=torch.long).permute(0, 3, 1, 2).copy_(wanted)
    assert torch.equal(native.improve(spread, scales, other, books, codes, 4), native.improve(w, scales, hessian, books, wanted, 4))


def test_one_block_may_serve_all_conv_groups(isa):
    w, scales, hessian, books = problem(3, 5, (12,), 1, 8, 4)
    one = hessian.blocks[0][:1]
    shared, each = Hessian((one.expand(3, -1, -1),)), Hessian((one.repeat(3, 1, 1),))
    assert torch.equal(*(native.encode(w, scales, h.factor(), books, Beam(1, 2)) for h in (shared, each)))


@pytest.mark.parametrize("wrong", [-1, 16, 1 << 40])
def test_codes_that_no_codebook_has_are_refused(isa, wrong):
    part = encoded(SHAPES[0])
    part.codes[0, 49, 3, 0] = wrong
    books = gaussian(1, 16, 4)
    for call in (
        lambda: native.improve(part.w, part.scales, part.hessian, books, part.codes, 1),
        lambda: native.forms(part.w, part.scales, part.weighted, part.hessian, books, part.codes),
        lambda: native.sums_by_code(part.w, part.scales, part.weighted, part.hessian, part.codes, (1, 16, 4), books),
        lambda: native.carried_by_code(part.w, part.scales, part.hessian, part.codes, (1, 16, 4)),
    ):
        with pytest.raises(InputError, match="out of range"):
            call()


def test_nan_gives_codes_that_exist(isa):
    """Whole encodings refuse it before."""
    for kept in BEAMS:
        w, scales, hessian, books = problem(1, 9, (24,), 2, 16, 4)
        w[0, 1, 5] = torch.nan
        codes = native.encode(w, scales, hessian.factor(), books, kept)
        assert ((codes >= 0) & (codes < 16)).all()
        books[1, 3] = torch.nan
        codes = native.improve(w, scales, hessian, books, codes, kept.within)
        assert ((codes >= 0) & (codes < 16)).all()


# -- sums --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_forms_and_sums_by_code_are_those_of_torch(isa, shape, monkeypatch):
    part, (_, _, hessian, books) = encoded(shape), problem(*shape)
    size = tuple(books.shape)
    found = [part.forms(books), part.sums_by_code(size, books), part.sums_by_code(size), part.carried_by_code(size)]
    signal, product = native.signals(part.w, hessian), native.products(part.w, hessian)
    monkeypatch.setattr(native, "library", lambda: None)
    wanted = [part.forms(books), part.sums_by_code(size, books), part.sums_by_code(size), part.carried_by_code(size)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5 * other.abs().max().item())
    torch.testing.assert_close(product, hessian.times(part.w), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(signal, (hessian.times(part.w) * part.w).sum(2, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "rows", "n_centres", "g"), [(3, 40, 7, 2), (2, 5, 1, 3), (70, 33, 300, 4), (1, 1, 4, 32), (5, 9, 20, 8)]
)
def test_assignments_and_their_sums_are_those_of_torch(isa, positions, rows, n_centres, g):
    x = gaussian(positions, 2 * g, g, seed=1)
    cloud = Cloud(gaussian(positions, rows, g), x.transpose(1, 2) @ x, gaussian(positions, rows, seed=2).square())
    centres = gaussian(n_centres, g, seed=3)
    codes = cloud.assign(centres)
    d = (cloud.vectors.unsqueeze(2) - centres).double()
    distances = ((d @ cloud.metric.unsqueeze(1).double()) * d).sum(3)
    torch.testing.assert_close(distances.gather(2, codes.unsqueeze(2)).squeeze(2), distances.amin(2), rtol=1e-4, atol=1e-4)
    for found, wanted in zip(cloud.equations(centres), cloud.sums(codes, n_centres), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize(("n_centres", "g"), [(1, 3), (7, 2), (40, 5), (30, 32)])
def test_centres_are_those_of_torch(isa, n_centres, g, monkeypatch):
    """Also where some lose their vectors: values that repeat are drawn several times."""
    clouds = []
    for i in range(2):
        x = gaussian(3, 2 * g, g, seed=i)
        clouds.append(
            Cloud(gaussian(3, 20, g, seed=5 + i).repeat(1, 3, 1), x.transpose(1, 2) @ x, 0.1 + gaussian(3, 60, seed=8 + i).square())
        )
    found = kmeans(clouds, n_centres, 3, torch.Generator().manual_seed(0))
    monkeypatch.setattr(native, "library", lambda: None)
    wanted = kmeans(clouds, n_centres, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 15, 64, 65, 128, 200, 333])
def test_the_triangular_factor(isa, n):
    h = correlated(n).blocks[0] + 0.1 * torch.eye(n)
    found = native.upper_cholesky(h.clone())
    assert torch.equal(found.triu(), found) and (found.diagonal(dim1=1, dim2=2) > 0).all()
    torch.testing.assert_close(found @ found.transpose(1, 2), h, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, upper_cholesky(h.double()).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3, 70])
def test_matrices_that_have_no_factor(isa, n):
    h = correlated(n).blocks[0].repeat(2, 1, 1)
    for wrong in (-1.0, 0.0, torch.nan):
        broken = h.clone()
        broken[1, n // 2, n // 2] = wrong
        assert native.upper_cholesky(broken) is None


# -- whole encodings ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_equal_to_the_bit_for_any_number_of_threads(isa, shape):
    """Also with more threads than rows."""
    before, made = torch.get_num_threads(), []
    (w, scales, hessian, books), part = problem(*shape), encoded(shape)
    size, factor, cloud = tuple(books.shape), hessian.factor(), Cloud.of(part, shape[5], 9)
    try:
        for n in (1, 2, 3, 64):
            torch.set_num_threads(n)
            codes = native.encode(w, scales, factor, books, Beam(4, 2)), native.improve(w, scales, hessian, books, part.codes, 4)
            sums = part.sums_by_code(size, books), part.carried_by_code(size), *cloud.equations(books[0])
            made.append([native.upper_cholesky(hessian.blocks[0].clone()), *codes, part.forms(books), *sums])
    finally:
        torch.set_num_threads(before)
    for other in made[1:]:
        assert all(torch.equal(one, two) for one, two in zip(made[0], other, strict=True))


TEXTS = ["1x4g4", "1x6g3q", "2x4g4m", "2x4g8h", "3x3g5", "1x4g4c", "1x3g9t", "6x3g12", "1x9g2"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("shape", "groups"), [((40, 26), 1), ((24, 4, 3, 3), 1), ((12, 3, 3, 3), 4)])
def test_encodings_are_as_good_as_without_it(isa, text, shape, groups, monkeypatch):
    format = Format.parse(text)
    if not format.fits(shape):
        pytest.skip("a format of convolutions")
    n_in = shape[1] * (9 if len(shape) > 2 else 1)
    weight, hessian = gaussian(*shape), correlated(n_in, groups=groups)
    found = encode(weight, format, hessian, groups=groups)
    monkeypatch.setattr(native, "library", lambda: None)
    assert found.error == pytest.approx(relative_error(weight, found.dequantize(), hessian, groups), rel=1e-3)
    assert found.error == pytest.approx(encode(weight, format, hessian, groups=groups).error, rel=0.05, abs=1e-6)


def test_vectors_of_both_widths_give_equal_encodings(monkeypatch):
    weight, hessian, made = gaussian(90, 64), correlated(64), []
    for name in ("avx2", "avx512"):
        monkeypatch.setenv("SEDAQ_MAX_ISA", name)
        if native.isa() != ISAS.index(name):
            pytest.skip("not on this processor")
        made.append([encode(weight, Format.parse(text), hessian).tensors for text in TEXTS if "t" not in text and "c" not in text])
    for one, other in zip(*made, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_it_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(native, "EXTENSION_SUFFIXES", [".not-built"])
    native.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "sedaq"):
            assert encode(gaussian(8, 8), Format.parse("1x3g4")).error < 1 and native.library() is None
        assert len([record for record in caplog.records if "C++ encoder" in record.message]) == 1
    finally:
        native.library.cache_clear()


def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    native.library.cache_clear()
    try:
        with pytest.raises(InputError, match="built from other sources than these; install sedaq again"):
            native.library()
    finally:
        native.library.cache_clear()


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("SEDAQ_MAX_ISA", "sse9")
    with pytest.raises(InputError, match="SEDAQ_MAX_ISA='sse9' is unknown; choose one of portable"):
        encode(gaussian(8, 8), Format.parse("1x3g4"))
