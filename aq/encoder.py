"""The encoder: codes, codebooks and scales that minimise the error of a layer's output.

Minimises tr((Ŵ − W) H (Ŵ − W)ᵀ) with Ŵ[r, group j] = scale[r] · Σ_m c_m[code[r, j, m]], as AQLM (Egiazarian et al. 2024, eq. 2) does:
  start      k-means in the metric of H's blocks (kmeans.py)
  rounds     codebooks by least squares (least_squares.py), scales in closed form, codes anew with error feedback, then once more group by
             group given all others (beam.py)
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

from ..errors import InputError
from ..models.hessian import Hessian
from . import beam
from .beam import Beam
from .encoding import INT8_ZERO, Encoding, column_order, expanded_codebooks, stored_codebooks
from .formats import Format
from .kmeans import residual_kmeans
from .least_squares import fit_codebooks
from .parallel import one_thread_an_operation, parallel_map
from .part import Part

# Shares of H's mean diagonal that are added to it (docs/experiments.md).
DAMPING = 1e-3  # for all, so that inputs that are always zero still pull their weights towards the truth
FEEDBACK_DAMPING = 0.02  # for error feedback
SPLIT_ABOVE = 1 << 19  # weights that are worth several threads


@dataclass(frozen=True)
class Effort:
    """How hard to try; the beam is that of formats with several codebooks, and of those with one."""

    rounds: int
    kmeans_iterations: int
    vectors_per_entry: int  # of the rows that codebooks are fitted on
    several: Beam
    one: Beam
    seconds: float = math.inf  # no new round begins after them

    def beam(self, format: Format) -> Beam:
        return self.one if format.n_codebooks == 1 else self.several


EFFORTS = {
    "draft": Effort(0, 6, 48, Beam(4, 1), Beam(1, 1)),  # to choose among formats
    "fast": Effort(2, 12, 96, Beam(8, 1), Beam(1, 2)),
    "full": Effort(12, 40, 1024, Beam(16, 1), Beam(1, 4)),
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
        raise InputError(f"--effort {text!r}: use draft, fast, full or a number of seconds a layer above zero")
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
    shape = tuple(weight.shape)
    if not torch.isfinite(weight).all():
        raise InputError(f"a weight of shape {shape} holds NaN or infinity; repair the model")
    n_in = math.prod(shape[1:])
    if format.book and book is None:
        raise InputError(
            f"format {format} shares the codebooks {format.book!r} among layers, one weight alone cannot have it; use {str(format).partition('@')[0]}"
        )
    hessian = _checked_hessian(hessian, n_in, groups, weight.device)

    provenance = {**(provenance or {}), "effort": effort, "seed": seed}
    if format.kind == "asis":
        return Encoding(format, shape, {"weight": weight.detach().cpu().contiguous()}, 0.0, provenance)
    if weight.abs().max() > torch.finfo(torch.float16).max:
        raise InputError(f"a weight of shape {shape} holds values above 65504, which scales in float16 cannot hold; leave it as it is")
    matrix = weight.detach().float().reshape(groups, -1, n_in)
    if format.kind == "int8":
        encoding = _round_to_int8(matrix, shape)
    else:
        format.tensor_specs(shape)  # refuses a format that does not fit
        encoding = _encode_additive(matrix, format, shape, hessian, parse_effort(effort), seed, book)
    with one_thread_an_operation():
        error = relative_error(weight, encoding.dequantize(), hessian, groups)
    provenance["seconds"] = round(time.perf_counter() - start, 3)
    return Encoding(format, shape, encoding.tensors, error, provenance)


def _checked_hessian(hessian: Hessian | torch.Tensor | None, n_in: int, groups: int, device: torch.device) -> Hessian:
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
    if not all(torch.isfinite(block).all() for block in hessian.blocks):
        raise InputError("the Hessian holds NaN or infinity; calibrate again")
    return Hessian(tuple(block.to(device, torch.float32).expand(groups, -1, -1) for block in hessian.blocks))


def relative_error(weight: torch.Tensor, approximation: torch.Tensor, hessian: Hessian, groups: int = 1) -> float:
    """‖(W − Ŵ)X‖² / ‖WX‖² under H; 0 for a weight or inputs that are zero anyway."""
    w = weight.detach().float().reshape(groups, -1, hessian.n_in)
    difference = w - approximation.to(w).reshape_as(w)
    signal = (hessian.times(w) * w).sum(dtype=torch.float64).item()
    noise = (hessian.times(difference) * difference).sum(dtype=torch.float64).item()
    return max(noise, 0.0) / signal if signal > 0 else 0.0


def _round_to_int8(matrix: torch.Tensor, shape: tuple[int, ...]) -> Encoding:
    """Symmetric round to nearest, one scale a row."""
    rows = matrix.reshape(shape[0], -1)
    scales = (rows.abs().amax(1) / 127).half()
    safe = torch.where(scales > 0, scales.float(), 1.0).unsqueeze(1)
    codes = ((rows / safe).round().clamp(-127, 127) + INT8_ZERO).to(torch.uint8).reshape(-1)
    return Encoding(Format("int8"), shape, {"codes": codes.cpu(), "scales": scales.cpu()}, math.nan)


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
        parts, rows = _parts(matrix, format, shape, hessian, rng)
        tensors = dict(book) if book is not None else stored_codebooks(format, _fit([parts], format, effort, rng, start))
        codebooks = expanded_codebooks(format, tensors).to(matrix.device)
        _finish(parts, codebooks, effort.beam(format))
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
    layers = []
    with one_thread_an_operation():
        for member in members:
            shape = tuple(member.weight.shape)
            if not torch.isfinite(member.weight).all():
                raise InputError(f"a weight of shape {shape} holds NaN or infinity; repair the model")
            matrix = member.weight.detach().float().reshape(member.groups, -1, math.prod(shape[1:]))
            hessian = _checked_hessian(member.hessian, matrix.shape[2], member.groups, matrix.device)
            signal = (hessian.times(matrix) * matrix).sum(dtype=torch.float64).item()
            energy = hessian.diagonal.mean().item() * matrix.numel()
            if signal > 0:
                matrix = matrix * math.sqrt(energy / signal)  # the prepared H is in units of its mean
                layers.append(_parts(matrix, format, shape, hessian, rng)[0])
        if not layers:
            raise InputError(f"the layers that share {format.book!r} hold nothing but zeros; leave them as they are")
        return stored_codebooks(format, _fit(layers, format, parse_effort(effort), rng, start))


def _parts(
    matrix: torch.Tensor, format: Format, shape: tuple[int, ...], hessian: Hessian, rng: torch.Generator
) -> tuple[list[Part], torch.Tensor]:
    """The weight's rows in random order, cut into parts, and which row of the weight each is."""
    order = column_order(format, shape)
    n_padded = format.n_groups(shape) * format.group_size
    w = matrix if order is None else matrix[:, :, order.to(matrix.device)]
    w = torch.nn.functional.pad(w, (0, n_padded - w.shape[2]))
    prepared = hessian.prepared(order, n_padded, DAMPING)
    factor = prepared.factor(FEEDBACK_DAMPING)
    n_groups, n_rows = w.shape[:2]
    rows = torch.arange(n_groups * n_rows).view(n_groups, n_rows)
    if n_groups == 1:
        shuffled = torch.randperm(n_rows, generator=rng)
        pieces = [piece.unsqueeze(0) for piece in shuffled.tensor_split(_n_parts(w))]
        return [Part(w[:, piece[0].to(w.device)], prepared, factor) for piece in pieces], torch.cat(pieces, 1).reshape(-1)
    shuffled = torch.randperm(n_groups, generator=rng)
    pieces = [rows[piece] for piece in shuffled.tensor_split(min(n_groups, _n_parts(w)))]
    parts = []
    for piece in pieces:
        chosen = (piece[:, 0] // n_rows).to(w.device)
        parts.append(Part(w[chosen], prepared.of_groups(chosen), factor.of_groups(chosen)))
    return parts, torch.cat([piece.reshape(-1) for piece in pieces])


def _n_parts(w: torch.Tensor) -> int:
    """By the weight's size alone, so that results don't depend on the number of threads; even, for machines have an even number.

    Operations on small parts take less time than threads take to wait for each other.
    """
    n_rows = w.shape[0] * w.shape[1]
    if w.device.type != "cpu" or w.numel() < SPLIT_ABOVE:
        return math.ceil(n_rows / 16384)
    return min(n_rows, 2 * math.ceil(n_rows / 2048))


def _fit(layers: Sequence[list[Part]], format: Format, effort: Effort, rng: torch.Generator, start: float) -> torch.Tensor:
    """Stored vectors (M, stored, g) for all layers; the parts that they were fitted on have codes and scales afterwards."""
    wanted = effort.vectors_per_entry * format.n_entries / len(layers)
    parts = [part for layer in layers for part in _enough(layer, wanted * format.group_size)]
    n_vectors = 64 * format.n_entries * (4 if effort.rounds > 4 else 1)
    stored = residual_kmeans(parts, format, effort.kmeans_iterations, max(32768, n_vectors), rng)
    expansion = format.expansion.to(stored.device)
    kept = effort.beam(format)
    parallel_map(lambda part: _choose(part, expansion @ stored, kept), parts)
    best_error, best = math.inf, (stored, [(part.codes, part.scales) for part in parts])
    for _ in range(effort.rounds):
        stored = fit_codebooks(parts, stored, format)
        books = expansion @ stored
        error = sum(parallel_map(lambda part: _round(part, books, kept), parts))  # noqa: B023 (used at once)
        gain = 1 - error / best_error if best_error > 0 else 0.0
        if gain > 0:
            best_error, best = error, (stored, [(part.codes, part.scales) for part in parts])
        if gain < 1e-3 or time.perf_counter() - start > effort.seconds:
            break
    stored, states = best
    for part, (codes, scales) in zip(parts, states, strict=True):
        part.codes, part.scales = codes, scales
    return fit_codebooks(parts, stored, format)


def _enough(parts: list[Part], n_weights: float) -> list[Part]:
    """The first parts that hold as many weights; two at least, if there are two."""
    held = 0
    chosen: list[Part] = []
    for part in parts:
        if held >= n_weights and len(chosen) >= 2:
            break
        held += part.w.numel()
        chosen.append(part)
    return chosen


def _choose(part: Part, books: torch.Tensor, kept: Beam) -> None:
    part.codes, _ = beam.encode(part.w, part.scales, part.factor, books, kept)


def _improve(part: Part, books: torch.Tensor, kept: Beam) -> None:
    part.codes, _ = beam.improve(part.w, part.scales, part.hessian, books, part.codes, kept.within)


def _round(part: Part, books: torch.Tensor, kept: Beam) -> float:
    part.update_scales(books)
    _choose(part, books, kept)
    _improve(part, books, kept)
    return part.error(books)


def _finish(parts: Sequence[Part], books: torch.Tensor, kept: Beam) -> None:
    """Codes and scales of every part under codebooks as they are stored, scales rounded too."""
    fitted = [part for part in parts if part.has_codes]
    ratio = sum(float((part.scales / part.root_mean_square.clamp(min=1e-30)).mean()) for part in fitted) / max(1, len(fitted)) or 1.0

    def finish(part: Part) -> None:
        if not part.has_codes:
            part.scales = part.root_mean_square * ratio
            _choose(part, books, kept)
            _improve(part, books, kept)  # no more than the scales that follow need
        part.update_scales(books)
        part.scales = part.scales.half().float()
        _improve(part, books, kept)

    parallel_map(finish, parts)


def _encoding(
    parts: Sequence[Part], rows: torch.Tensor, format: Format, shape: tuple[int, ...], tensors: dict[str, torch.Tensor]
) -> Encoding:
    codes = torch.cat([part.codes.flatten(0, 1) for part in parts]).cpu()
    scales = torch.cat([part.scales.reshape(-1) for part in parts]).cpu()
    back = rows.argsort()
    return Encoding.of_codes(format, shape, codes[back], tensors, scales[back])
