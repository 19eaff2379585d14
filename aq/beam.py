"""Choosing codes: beam search over groups, for many rows at once.

The error of a row w under H = C Cᵀ (C upper triangular, `Hessian.factor`) is ‖e C‖² with e = ŵ − w. Its part at group j,
e_j C_jj + Σ_{i<j} e_i C_ij, holds no group after j: those can still make up for what earlier ones missed. So `encode` walks the groups in
order, each carrying the errors of those before (the error feedback of GPTQ, Frantar et al. 2023, and LDLQ, Chee et al. 2023, for vectors),
and keeps the best few hypotheses: K-best sphere decoding. `improve` then changes one group at a time, all others given, as AQLM's beam
search does (Egiazarian et al. 2024), and can never make a row worse.

Both go through a row in windows. Inside a window the product of errors and H is updated with every choice; at its beginning one product of
matrices brings in all that was chosen before, so that no sweep costs more than one product of the whole matrix.

Shapes: S conv groups, R rows, n columns, g a group's size, M codebooks of K entries, b hypotheses. w (S, R, n), scales (S, R, 1),
books (M, K, g), codes (S, R, n / g, M).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..models.hessian import BlockDiagonal

WINDOW = 128  # columns
_FOLDS = 32  # fewer do not fill the processor's vectors


@dataclass(frozen=True)
class Beam:
    """How many hypotheses are kept."""

    within: int  # between the codebooks of a group
    across: int  # from a group to the next, inside a window


def smallest(values: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n smallest of each row and their places, in no particular order: (N, P) → (N, n), (N, n).

    The n smallest lie in the n folds with the smallest minima, so that only those are looked through.
    """
    count, width = values.shape
    depth = min(16, width // _FOLDS)
    if width < (4 if n > 1 else 32) * _FOLDS or width % depth or width // depth < 2 * n:
        return _smallest_of_few(values, n)
    n_folds = width // depth
    folded = values.view(count, depth, n_folds)
    _, fold = _smallest_of_few(folded.amin(1), n)
    kept = folded.gather(2, fold.unsqueeze(1).expand(-1, depth, -1)).view(count, -1)
    best, place = _smallest_of_few(kept, n)
    return best, (place // n) * n_folds + fold.gather(1, place % n)


def _smallest_of_few(values: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return values.min(1, keepdim=True) if n == 1 else values.topk(min(n, values.shape[1]), 1, largest=False, sorted=False)


def _take(x: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
    """Hypotheses (S, R, b, …) → those that `parent` (S, R, b') names."""
    if x.shape[2] == 1:
        return x.expand(-1, -1, parent.shape[2], *x.shape[3:])
    index = parent.reshape(*parent.shape, *[1] * (x.ndim - 3)).expand(*parent.shape, *x.shape[3:])
    return x.gather(2, index)


@dataclass
class _Chosen:
    """What hypotheses chose in one group: which one each comes from, its codes (S, R, b, M) and their sum (S, R, b, g)."""

    parent: torch.Tensor
    codes: torch.Tensor
    words: torch.Tensor


def _extend(
    energy: torch.Tensor, linear: torch.Tensor, block: torch.Tensor, scales: torch.Tensor, books: torch.Tensor, beam: Beam
) -> tuple[torch.Tensor, _Chosen]:
    """Add one group to every hypothesis and keep the best.

    Minimises energy + 2 s u·linear + s² u block uᵀ over hypotheses and u = Σ_m c_m, codebook by codebook; exact for M = 1.

    Args:
        energy: (S, R, b); linear: (S, R, b, g); block: (S, g, g).
    """
    n_groups, rows, _, g = linear.shape
    n_books, n_entries, _ = books.shape
    quadratic = ((books.unsqueeze(1) @ block) * books.unsqueeze(1)).sum(3)  # (M, S, K)
    s = scales.unsqueeze(2)
    chosen: _Chosen | None = None
    for m, book in enumerate(books):
        gradient = linear if chosen is None else _take(linear, chosen.parent) + s * (chosen.words @ block.unsqueeze(1))
        # One product gives all energies: the rows' last two columns meet the codewords' own energies and the hypothesis'.
        left = torch.cat([2 * s * gradient, (s * s).expand(-1, -1, gradient.shape[2], 1), energy.unsqueeze(3)], 3)
        right = torch.cat([book.T.expand(n_groups, -1, -1), quadratic[m].unsqueeze(1), quadratic.new_ones(n_groups, 1, n_entries)], 1)
        candidates = (left.reshape(n_groups, -1, g + 2) @ right).view(n_groups * rows, -1)
        n_kept = beam.across if m == n_books - 1 else beam.within * beam.across
        found, place = smallest(candidates, min(n_kept, candidates.shape[1]))
        energy, place = found.view(n_groups, rows, -1), place.view(n_groups, rows, -1)
        parent, entry = place // n_entries, place % n_entries
        words, codes = book[entry], entry.unsqueeze(3)
        if chosen is None:
            chosen = _Chosen(parent, codes, words)
        else:
            chosen = _Chosen(
                _take(chosen.parent, parent), torch.cat([_take(chosen.codes, parent), codes], 3), _take(chosen.words, parent) + words
            )
    assert chosen is not None
    return energy, chosen


def best_codes(
    linear: torch.Tensor, block: torch.Tensor, scales: torch.Tensor, books: torch.Tensor, beam: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of one group that minimise 2 s u·linear + s² u block uᵀ over u = Σ_m c_m; exact for M = 1 or a beam of K^(M−1).

    Args:
        linear: (S, R, g); block: (S, g, g); beam: hypotheses between codebooks.

    Returns:
        codes (S, R, M) and their sums u (S, R, g).
    """
    _, chosen = _extend(linear.new_zeros(*linear.shape[:2], 1), linear.unsqueeze(2), block, scales, books, Beam(beam, 1))
    return chosen.codes.squeeze(2), chosen.words.squeeze(2)


def _windows(n: int, g: int) -> Iterator[tuple[int, int]]:
    step = max(1, WINDOW // g) * g
    return ((start, min(n, start + step)) for start in range(0, n, step))


def encode(
    w: torch.Tensor, scales: torch.Tensor, factor: BlockDiagonal, books: torch.Tensor, beam: Beam
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of all groups from nothing, with error feedback. Returns codes and their sums (S, R, n), not yet scaled."""
    g, s = books.shape[2], scales.unsqueeze(2)
    error, words = torch.zeros_like(w), torch.empty_like(w)
    codes = torch.empty(*w.shape[:2], w.shape[2] // g, len(books), dtype=torch.long, device=w.device)
    for start, stop in _windows(w.shape[2], g):
        square = factor.window(start, stop)
        carried = factor.columns_times(error, start, stop).unsqueeze(2)  # (S, R, b, window)
        energy = w.new_zeros(*w.shape[:2], 1)
        history: list[_Chosen] = []
        for a in range(0, stop - start, g):
            corner = square[:, a : a + g, a : a + g]
            target = w[:, :, start + a : start + a + g]
            offset = carried[..., a : a + g] - (target @ corner).unsqueeze(2)
            transposed = corner.transpose(1, 2)
            energy, chosen = _extend(
                energy + offset.square().sum(3), offset @ transposed.unsqueeze(1), corner @ transposed, scales, books, beam
            )
            change = s * chosen.words - target.unsqueeze(2)
            carried = _take(carried, chosen.parent) + change @ square[:, a : a + g].unsqueeze(1)
            history.append(chosen)
        best = energy.argmin(2, keepdim=True)
        for a, chosen in zip(reversed(range(start, stop, g)), reversed(history), strict=True):
            codes[:, :, a // g] = _take(chosen.codes, best).squeeze(2)
            words[:, :, a : a + g] = _take(chosen.words, best).squeeze(2)
            best = _take(chosen.parent, best)
        error[:, :, start:stop] = scales * words[:, :, start:stop] - w[:, :, start:stop]
    return codes, words


def improve(
    w: torch.Tensor, scales: torch.Tensor, hessian: BlockDiagonal, books: torch.Tensor, codes: torch.Tensor, beam: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose every group's codes anew, in order, given all others. Returns codes and their sums; no row gets worse."""
    g = books.shape[2]
    codes = codes.clone()
    words = sum_of(books, codes)
    error = scales * words - w
    for start, stop in _windows(w.shape[2], g):
        square = hessian.window(start, stop)
        product = hessian.columns_times(error, start, stop)
        for a in range(0, stop - start, g):
            block = square[:, a : a + g, a : a + g]
            here = slice(start + a, start + a + g)
            old = words[:, :, here].clone()
            linear = product[:, :, a : a + g] - (scales * old) @ block
            found, new = best_codes(linear, block, scales, books, beam)
            # Where beam search missed the optimum, what was there may be better.
            better = (_energy(scales * new, linear, block) < _energy(scales * old, linear, block)).unsqueeze(2)
            j = here.start // g
            codes[:, :, j] = torch.where(better, found, codes[:, :, j])
            words[:, :, here] = torch.where(better, new, old)
            product = product + (scales * (words[:, :, here] - old)) @ square[:, a : a + g]
        error[:, :, start:stop] = scales * words[:, :, start:stop] - w[:, :, start:stop]
    return codes, words


def _energy(x: torch.Tensor, linear: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """2 x·linear + x block xᵀ: (S, R, g) → (S, R)."""
    return ((2 * linear + x @ block) * x).sum(2)


def sum_of(books: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Unscaled sums of codewords, (S, R, n)."""
    words = books[0][codes[..., 0]]
    for m in range(1, len(books)):
        words += books[m][codes[..., m]]
    return words.flatten(2)
