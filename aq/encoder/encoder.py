"""The encoder: codes, codebooks and scales that minimise the error of a layer's output.

Minimises tr((Ŵ − W) H (Ŵ − W)ᵀ) with Ŵ[r, group j] = scale[r] · Σ_m c_m[code[r, j, m]], as AQLM (Egiazarian et al. 2024, eq. 2) does:
  start      k-means in the metric of H's blocks (kmeans.py)
  rounds     codebooks by least squares (least_squares.py), codes anew with error feedback, then once more group by group given all others
             (beam.py), scales in closed form
  end        codebooks and scales are rounded to what is stored, and codes chosen a last time under those
Codebooks are few numbers, so they are fitted on as many rows as they need; the other rows are coded at the end.

Shapes: S conv groups (1 for most layers), R = out / S rows each, n coded columns (padded), G = n / g. W (S, R, n), codes (S, R, G, M).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...errors import InputError
from ...kernels.timing import clock
from ...models.hessian import Hessian
from ..encoding import Encoding, expanded_codebooks, stored_codebooks
from ..formats import Format
from ..parallel import one_thread_an_operation
from .beam import Beam
from .kmeans import residual_kmeans
from .least_squares import fit_codebooks
from .objective import Objective
from .part import Part

MIN_GAIN = 2e-4  # of a round, below which no other begins
MIN_FITTED = 1 << 18  # weights that codebooks are fitted on at least, where there are as many


@dataclass(frozen=True)
class Effort:
    """How hard to try; the beam is that of formats with several codebooks, and of those with one."""

    rounds: int
    kmeans_iterations: int
    fit_iterations: int  # of conjugate gradients each time
    vectors_per_entry: int  # of the rows that codebooks are fitted on
    several: Beam
    one: Beam
    seconds: float = math.inf  # no new round begins after them

    def n_fitted(self, format: Format) -> int:
        """Weights that codebooks are fitted on, where there are as many."""
        return max(self.vectors_per_entry * format.n_entries * format.group_size, MIN_FITTED)

    def beam(self, format: Format) -> Beam:
        """How many hypotheses are kept for a format."""
        return self.one if format.n_codebooks == 1 else self.several


EFFORTS = {
    "draft": Effort(0, 3, 2, 48, Beam(4, 1), Beam(1, 1)),  # to choose among formats
    "fast": Effort(2, 12, 3, 300, Beam(8, 1), Beam(1, 2)),
    "full": Effort(40, 40, 6, 2400, Beam(16, 8), Beam(1, 32)),
}


def parse_effort(text: str) -> Effort:
    """ "draft", "fast", "full" or a number of seconds a layer."""
    if text in EFFORTS:
        return EFFORTS[text]
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InputError(f"`effort` {text!r}: use draft, fast, full or a number of seconds a layer above zero")
    return replace(EFFORTS["full"], rounds=1000, seconds=seconds)


def encode(
    weight: torch.Tensor,
    format: Format,
    hessian: Hessian | torch.Tensor | None = None,
    *,
    effort: str = "fast",
    seed: int = 0,
    groups: int = 1,
    book: Mapping[str, torch.Tensor] | None = None,
    provenance: dict[str, str | int | float] | None = None,
) -> Encoding:
    """Encode one weight.

    Args:
        weight: (out, in / groups, *taps).
        hessian: second moment of the inputs, a matrix (in, in) in the order of weight.flatten(1), or one per conv group; identity if None.
        effort: "draft", "fast", "full" or seconds; the last does not repeat bit by bit.
        groups: of a grouped convolution.
        book: codebooks as they are stored, of a format that shares them; `fit_book` makes them.

    Raises:
        InputError: for NaN or infinity, a Hessian of another size or not positive semi-definite, a format that the shape can't have, or
            one that shares codebooks where none are given.

    >>> encoding = encode(torch.randn(32, 24), Format.parse("1x4g4"))
    >>> encoding.dequantize().shape, encoding.size_bytes
    (torch.Size([32, 24]), 288)
    """
    objective = Objective.of(weight, hessian, groups)
    if format.kind == "asis":
        kept = {"weight": weight.detach().cpu().contiguous()}
        return Encoding(format, objective.shape, kept, 0.0, {**(provenance or {}), "effort": effort, "seed": seed})
    return encode_objective(objective, format, effort=effort, seed=seed, book=book, provenance=provenance)


def encode_objective(
    objective: Objective,
    format: Format,
    *,
    effort: str = "fast",
    seed: int = 0,
    book: Mapping[str, torch.Tensor] | None = None,
    provenance: dict[str, str | int | float] | None = None,
) -> Encoding:
    """`encode` of a weight that is encoded in several formats: what they have in common is made once."""
    start = clock()
    shape = objective.shape
    if format.book and book is None:
        raise InputError(
            f"format {format} shares the codebooks {format.book!r} among layers, one weight alone cannot have it; use {str(format).partition('@')[0]}"
        )
    if objective.matrix.abs().max() > torch.finfo(torch.float16).max:
        raise InputError(f"a weight of shape {shape} holds values above 65504, which scales in float16 cannot hold; leave it as it is")
    with one_thread_an_operation():
        if format.scalar is not None:
            tensors = format.scalar.encode(objective.matrix.reshape(shape[0], -1))
            encoding = Encoding(format, shape, tensors, math.nan)
        else:
            format.tensor_specs(shape)  # refuses a format that does not fit
            encoding = _encode_additive(objective, format, parse_effort(effort), seed, book)
        error = objective.relative_error(encoding.dequantize())
    seconds = round(clock() - start, 3)
    return Encoding(format, shape, encoding.tensors, error, {**(provenance or {}), "effort": effort, "seed": seed, "seconds": seconds})


def relative_error(weight: torch.Tensor, approximation: torch.Tensor, hessian: Hessian, groups: int = 1) -> float:
    """‖(W − Ŵ)X‖² / ‖WX‖² under H; 0 for a weight or inputs that are zero anyway."""
    return Objective.of(weight, hessian, groups).relative_error(approximation)


def _encode_additive(objective: Objective, format: Format, effort: Effort, seed: int, book: Mapping[str, torch.Tensor] | None) -> Encoding:
    start = clock()
    rng = torch.Generator().manual_seed(seed)
    parts, rows = objective.parts(format, effort.n_fitted(format), rng)
    tensors = dict(book) if book is not None else stored_codebooks(format, _fit(parts[:1], format, effort, rng, start))
    _finish(parts, expanded_codebooks(format, tensors), effort.beam(format), effort.rounds > 0)
    return _encoding(parts, rows, format, objective.shape, tensors)


def fit_book(members: Sequence[Objective], format: Format, *, effort: str = "fast", seed: int = 0) -> dict[str, torch.Tensor]:
    """Codebooks for several layers together, as they are stored; `encode` takes them.

    Every layer counts by its relative error, and is seen through as many rows as its share of the codebooks' needs.
    """
    start = clock()
    rng = torch.Generator().manual_seed(seed)
    tried = parse_effort(effort)
    wanted = tried.n_fitted(format) / max(1, len(members))
    parts = []
    with one_thread_an_operation():
        for objective in members:
            if objective.signal > 0:
                energy = objective.hessian.mean * objective.matrix.numel()
                scaled = objective.scaled(math.sqrt(energy / objective.signal))  # the prepared H is in units of its mean
                parts.append(scaled.parts(format, wanted, rng)[0][0])
        if not parts:
            raise InputError(f"the layers that share {format.book!r} hold nothing but zeros; leave them as they are")
        return stored_codebooks(format, _fit(parts, format, tried, rng, start))


def _fit(parts: Sequence[Part], format: Format, effort: Effort, rng: torch.Generator, start: float) -> torch.Tensor:
    """Stored vectors (M, stored, g) fitted on all parts, which have codes and scales afterwards."""
    n_vectors = 64 * format.n_entries * (4 if effort.rounds > 4 else 1)
    stored = residual_kmeans(parts, format, effort.kmeans_iterations, max(32768, n_vectors), rng)
    expansion, kept = format.expansion, effort.beam(format)
    for part in parts:
        part.encode(expansion @ stored, kept)
        part.update_scales(expansion @ stored)
    best_error, best = math.inf, (stored, [(part.codes, part.scales) for part in parts])
    for _ in range(effort.rounds):
        stored = fit_codebooks(parts, stored, format, effort.fit_iterations)
        error = sum(_round(part, expansion @ stored, kept) for part in parts)
        gain = 1 - error / best_error if best_error > 0 else 0.0
        if gain > 0:
            best_error, best = error, (stored, [(part.codes, part.scales) for part in parts])
        if gain < MIN_GAIN or clock() - start > effort.seconds:
            break
    stored, states = best
    for part, (codes, scales) in zip(parts, states, strict=True):
        part.codes, part.scales = codes, scales
    return fit_codebooks(parts, stored, format, effort.fit_iterations)


def _round(part: Part, books: torch.Tensor, kept: Beam) -> float:
    part.encode(books, kept)
    part.improve(books, kept)
    return part.update_scales(books)


def _finish(parts: Sequence[Part], books: torch.Tensor, kept: Beam, improved: bool) -> None:
    """Codes and scales of every part under codebooks as they are stored, scales rounded too; `improved`: codes once more given all others."""
    fitted = [part for part in parts if part.has_codes]
    ratio = sum(float((part.scales / part.root_mean_square.clamp(min=1e-30)).mean()) for part in fitted) / max(1, len(fitted)) or 1.0
    for part in parts:
        if not part.has_codes:
            part.scales = part.root_mean_square * ratio
            part.encode(books, kept)
            if improved:
                part.improve(books, kept)  # no more than the scales that follow need
        part.update_scales(books)
        part.scales = part.scales.half().float()
        if improved:
            part.improve(books, kept)


def _encoding(
    parts: Sequence[Part], rows: torch.Tensor, format: Format, shape: tuple[int, ...], tensors: dict[str, torch.Tensor]
) -> Encoding:
    codes = torch.cat([part.codes.flatten(0, 1) for part in parts])
    scales = torch.cat([part.scales.reshape(-1) for part in parts])
    back = rows.argsort()
    return Encoding.of_codes(format, shape, codes[back], tensors, scales[back])
