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

from ...models.hessian import BlockDiagonal

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


def _diagonal_blocks(square: torch.Tensor, g: int) -> torch.Tensor:
    """(S, P · g, P · g) → (P, S, g, g)."""
    return square.unflatten(2, (-1, g)).unflatten(1, (-1, g)).diagonal(dim1=1, dim2=3).permute(3, 0, 1, 2)


def _tables(books: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """What `_extend` multiplies rows with for the energies of all codewords: (P, M, S, g + 2, K) for blocks (P, S, g, g).

    Rows are the codewords, their own energies c block cᵀ, and ones.
    """
    x = books.unsqueeze(1)
    own = ((x @ blocks.unsqueeze(1)) * x).sum(4).unsqueeze(3)  # (P, M, S, 1, K)
    return torch.cat([x.transpose(2, 3).expand(*own.shape[:3], -1, -1), own, torch.ones_like(own)], 3)


def _extend(
    energy: torch.Tensor,
    linear: torch.Tensor,
    block: torch.Tensor,
    scales: torch.Tensor,
    books: torch.Tensor,
    table: torch.Tensor,
    beam: Beam,
) -> tuple[torch.Tensor, _Chosen]:
    """Add one group to every hypothesis and keep the best.

    Minimises energy + 2 s u·linear + s² u block uᵀ over hypotheses and u = Σ_m c_m, codebook by codebook; exact for M = 1.

    Args:
        energy: (S, R, b); linear: (S, R, b, g); block: (S, g, g); scales: (S, R, 1); table: (M, S, g + 2, K).
    """
    n_groups, rows, _, g = linear.shape
    n_books, n_entries, _ = books.shape
    s = scales.unsqueeze(2)
    square, twice = s * s, 2 * s
    chosen: _Chosen | None = None
    for m, book in enumerate(books):
        gradient = linear if chosen is None else _take(linear, chosen.parent) + s * (chosen.words @ block.unsqueeze(1))
        # One product gives all energies: the rows' last two columns meet the codewords' own energies and the hypothesis'.
        left = torch.cat([twice * gradient, square.expand(-1, -1, gradient.shape[2], 1), energy.unsqueeze(3)], 3)
        candidates = (left.view(n_groups, -1, g + 2) @ table[m]).view(n_groups * rows, -1)
        n_kept = beam.across if m == n_books - 1 else beam.within * beam.across
        found, place = smallest(candidates, min(n_kept, candidates.shape[1]))
        energy, place = found.view(n_groups, rows, -1), place.view(n_groups, rows, -1)
        if gradient.shape[2] == 1:
            parent, entry = torch.zeros_like(place), place
        else:
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
    _, chosen = _add_to_none(linear, block, scales, books, _tables(books, block.unsqueeze(0))[0], beam)
    return chosen.codes.squeeze(2), chosen.words.squeeze(2)


def _add_to_none(
    linear: torch.Tensor, block: torch.Tensor, scales: torch.Tensor, books: torch.Tensor, table: torch.Tensor, beam: int
) -> tuple[torch.Tensor, _Chosen]:
    """The one best choice of a group: `_extend` from a single empty hypothesis."""
    return _extend(linear.new_zeros(*linear.shape[:2], 1), linear.unsqueeze(2), block, scales, books, table, Beam(beam, 1))


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
        corners = _diagonal_blocks(square, g).transpose(2, 3)
        blocks = corners.transpose(2, 3) @ corners
        tables = _tables(books, blocks)
        # What the errors before the next group, and the weights from it on, bring into its columns and all after it: (S, R, b, columns).
        carried = (factor.columns_times(error, start, stop) - w[:, :, start:stop] @ square).unsqueeze(2)
        energy = w.new_zeros(*w.shape[:2], 1)
        history: list[_Chosen] = []
        for a, corner, block, table in zip(range(0, stop - start, g), corners, blocks, tables, strict=True):
            offset = carried[..., :g]
            energy = energy + offset.square().sum(3)
            energy, chosen = _extend(energy, offset @ corner.unsqueeze(1), block, scales, books, table, beam)
            carried = _take(carried[..., g:], chosen.parent) + (s * chosen.words) @ square[:, a : a + g, a + g :].unsqueeze(1)
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
        product = hessian.columns_times(error, start, stop)  # at the columns of the next group and all after it
        blocks = _diagonal_blocks(square, g)
        for a, block, table in zip(range(start, stop, g), blocks, _tables(books, blocks), strict=True):
            old = words[:, :, a : a + g]
            scaled = scales * old
            moved = scaled @ block
            linear = product[:, :, :g] - moved
            energy, chosen = _add_to_none(linear, block, scales, books, table, beam)
            new, found = chosen.words.squeeze(2), chosen.codes.squeeze(2)
            if len(books) > 1:  # where beam search missed the optimum, what was there may be better
                better = energy < ((2 * linear + moved) * scaled).sum(2, keepdim=True)
                new, found = torch.where(better, new, old), torch.where(better, found, codes[:, :, a // g])
            product = product[:, :, g:] + (scales * (new - old)) @ square[:, a - start : a - start + g, a - start + g :]
            codes[:, :, a // g], words[:, :, a : a + g] = found, new
        error[:, :, start:stop] = scales * words[:, :, start:stop] - w[:, :, start:stop]
    return codes, words


def sum_of(books: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Unscaled sums of codewords, (S, R, n)."""
    words = books[0][codes[..., 0]]
    for m in range(1, len(books)):
        words += books[m][codes[..., m]]
    return words.flatten(2)
