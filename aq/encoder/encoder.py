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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...errors import InputError
from ...models.hessian import Hessian
from ..encoding import INT8_ZERO, Encoding, column_order, expanded_codebooks, stored_codebooks
from ..formats import Format
from ..parallel import one_thread_an_operation
from . import native
from .beam import Beam
from .kmeans import residual_kmeans
from .least_squares import fit_codebooks
from .part import Part, squared_norm

# Shares of H's mean diagonal that are added to it (docs/experiments/calibration.md).
DAMPING = 1e-3  # for all, so that inputs that are always zero still pull their weights towards the truth
FEEDBACK_DAMPING = 0.01  # for error feedback
LEAST_GAIN = 2e-4  # of a round, below which no other begins
LEAST_FITTED = 1 << 18  # weights that codebooks are fitted on, where there are as many


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

    def beam(self, format: Format) -> Beam:
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
    start = time.perf_counter()
    shape, weight = tuple(weight.shape), weight.detach().cpu()  # the codes are chosen by the processor's cores, wherever the model is
    if not _is_finite(weight):
        raise InputError(f"a weight of shape {shape} holds NaN or infinity; repair the model")
    n_in = math.prod(shape[1:])
    if format.book and book is None:
        raise InputError(
            f"format {format} shares the codebooks {format.book!r} among layers, one weight alone cannot have it; use {str(format).partition('@')[0]}"
        )
    hessian = _checked_hessian(hessian, n_in, groups)

    provenance = {**(provenance or {}), "effort": effort, "seed": seed}
    if format.kind == "asis":
        return Encoding(format, shape, {"weight": weight.contiguous()}, 0.0, provenance)
    if weight.abs().max() > torch.finfo(torch.float16).max:
        raise InputError(f"a weight of shape {shape} holds values above 65504, which scales in float16 cannot hold; leave it as it is")
    matrix = weight.float().reshape(groups, -1, n_in)
    if format.kind == "int8":
        encoding = _round_to_int8(matrix, shape)
    else:
        format.tensor_specs(shape)  # refuses a format that does not fit
        encoding = _encode_additive(matrix, format, shape, hessian, parse_effort(effort), seed, book)
    with one_thread_an_operation():
        error = relative_error(weight, encoding.dequantize(), hessian, groups)
    provenance["seconds"] = round(time.perf_counter() - start, 3)
    return Encoding(format, shape, encoding.tensors, error, provenance)


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.sum(dtype=torch.float64).isfinite())  # several times as fast as asking every number


def _checked_hessian(hessian: Hessian | torch.Tensor | None, n_in: int, groups: int) -> Hessian:
    """As float32 blocks. Raises InputError for another size, NaN or infinity."""
    if hessian is None:
        hessian = Hessian.identity(n_in, groups)
    if isinstance(hessian, torch.Tensor):
        if hessian.ndim not in (2, 3) or hessian.shape[-1] != hessian.shape[-2]:
            raise InputError(f"a Hessian of shape {tuple(hessian.shape)} is not (in, in), nor (groups, in, in); calibrate again")
        hessian = Hessian.of(hessian)
    if hessian.n_in != n_in or hessian.groups not in (1, groups):
        raise InputError(
            f"a Hessian of {hessian.groups} groups and {hessian.n_in} inputs cannot weigh a weight of {groups} groups and {n_in} inputs; calibrate again"
        )
    if not all(_is_finite(block) for block in hessian.blocks):
        raise InputError("the Hessian holds NaN or infinity; calibrate again")
    return Hessian(tuple(block.to("cpu", torch.float32).expand(groups, -1, -1) for block in hessian.blocks))


def relative_error(weight: torch.Tensor, approximation: torch.Tensor, hessian: Hessian, groups: int = 1) -> float:
    """‖(W − Ŵ)X‖² / ‖WX‖² under H; 0 for a weight or inputs that are zero anyway."""
    w = weight.detach().float().reshape(groups, -1, hessian.n_in)
    difference = w - approximation.to(w).reshape_as(w)
    signal, noise = squared_norm(w, hessian), squared_norm(difference, hessian)
    return max(noise, 0.0) / signal if signal > 0 else 0.0


def _round_to_int8(matrix: torch.Tensor, shape: tuple[int, ...]) -> Encoding:
    """Symmetric round to nearest, one scale a row."""
    rows = matrix.reshape(shape[0], -1)
    scales = (rows.abs().amax(1) / 127).half()
    safe = torch.where(scales > 0, scales.float(), 1.0).unsqueeze(1)
    codes = ((rows / safe).round().clamp(-127, 127) + INT8_ZERO).to(torch.uint8).reshape(-1)
    return Encoding(Format("int8"), shape, {"codes": codes, "scales": scales}, math.nan)


def _encode_additive(
    matrix: torch.Tensor,
    format: Format,
    shape: tuple[int, ...],
    hessian: Hessian,
    effort: Effort,
    seed: int,
    book: Mapping[str, torch.Tensor] | None,
) -> Encoding:
    start = time.perf_counter()
    rng = torch.Generator().manual_seed(seed)
    with one_thread_an_operation():
        wanted = effort.vectors_per_entry * format.n_entries * format.group_size
        parts, rows = _parts(matrix, format, shape, hessian, wanted, rng)
        tensors = dict(book) if book is not None else stored_codebooks(format, _fit(parts[:1], format, effort, rng, start))
        _finish(parts, expanded_codebooks(format, tensors), effort.beam(format), effort.rounds > 0)
    return _encoding(parts, rows, format, shape, tensors)


@dataclass(frozen=True)
class Member:
    """A layer that shares codebooks."""

    weight: torch.Tensor  # (out, in / groups, *taps)
    hessian: Hessian
    groups: int = 1


def fit_book(members: Sequence[Member], format: Format, *, effort: str = "fast", seed: int = 0) -> dict[str, torch.Tensor]:
    """Codebooks for several layers together, as they are stored; `encode` takes them.

    Every layer counts by its relative error, and is seen through as many rows as its share of the codebooks' needs.
    """
    start = time.perf_counter()
    rng = torch.Generator().manual_seed(seed)
    tried = parse_effort(effort)
    wanted = tried.vectors_per_entry * format.n_entries * format.group_size / max(1, len(members))
    parts = []
    with one_thread_an_operation():
        for member in members:
            shape = tuple(member.weight.shape)
            if not _is_finite(member.weight):
                raise InputError(f"a weight of shape {shape} holds NaN or infinity; repair the model")
            matrix = member.weight.detach().cpu().float().reshape(member.groups, -1, math.prod(shape[1:]))
            hessian = _checked_hessian(member.hessian, matrix.shape[2], member.groups)
            signal = squared_norm(matrix, hessian)
            energy = hessian.diagonal.mean().item() * matrix.numel()
            if signal > 0:
                matrix = matrix * math.sqrt(energy / signal)  # the prepared H is in units of its mean
                parts.append(_parts(matrix, format, shape, hessian, wanted, rng)[0][0])
        if not parts:
            raise InputError(f"the layers that share {format.book!r} hold nothing but zeros; leave them as they are")
        return stored_codebooks(format, _fit(parts, format, tried, rng, start))


def _parts(
    matrix: torch.Tensor, format: Format, shape: tuple[int, ...], hessian: Hessian, wanted: float, rng: torch.Generator
) -> tuple[list[Part], torch.Tensor]:
    """The weight's rows in random order, and which row of the weight each is: first a part of about as many weights as are wanted for
    codebooks to be fitted on, then the others, if there are any."""
    order = column_order(format, shape)
    n_padded = format.n_groups(shape) * format.group_size
    w = matrix if order is None else matrix[:, :, order]
    w = torch.nn.functional.pad(w, (0, n_padded - w.shape[2]))
    prepared = hessian.prepared(order, n_padded, DAMPING)
    factor = prepared.factor(FEEDBACK_DAMPING, native.upper_cholesky if native.library() else None)
    n_groups, n_rows = w.shape[:2]
    rows = torch.arange(n_groups * n_rows).view(n_groups, n_rows)
    n_units = n_rows if n_groups == 1 else n_groups
    shuffled = torch.randperm(n_units, generator=rng)
    n_first = math.ceil(n_units * max(wanted, LEAST_FITTED) / max(1, w.numel()))
    pieces = [shuffled] if n_first > 0.8 * n_units else list(shuffled.split([n_first, n_units - n_first]))
    if n_groups == 1:
        return [Part(w[:, piece], prepared, factor) for piece in pieces], shuffled
    return [Part(w[piece], prepared.of_groups(piece), factor.of_groups(piece)) for piece in pieces], rows[shuffled].reshape(-1)


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
        if gain < LEAST_GAIN or time.perf_counter() - start > effort.seconds:
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
