"""The encoder: codes, codebooks and scales that minimise the error of a layer's output.

Minimises tr((Ŵ − W) H (Ŵ − W)ᵀ) with Ŵ[r, group j] = scale[r] · Σ_m c_m[code[r, j, m]], as AQLM (Egiazarian et al. 2024, eq. 2) does, by
rounds of three exact or locally exact steps:
  codes      one sweep over the groups; all codes of a group are chosen together by beam search given all other groups. The product
             (Ŵ − W)H is carried along and updated by the change, so the matrix is never de-quantized.
  codebooks  least squares under the full H by conjugate gradients, where AQLM takes 100 Adam steps.
  scales     closed form for each row.
Mirrored and hierarchical codebooks are linear in their stored vectors, so one code serves all structures.

Shapes: S conv groups (1 for most layers), R = out / S rows each, n coded columns (padded), g = n / G. W (S, R, n), codes (S, R, G, M).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..models.hessian import Hessian
from .encoding import INT8_ZERO, Encoding, column_order, stored_codebooks
from .formats import Format
from .kmeans import residual_kmeans

DAMPING = 1e-3  # of H's mean diagonal, so that inputs that are always zero still pull their weights towards the truth


@dataclass(frozen=True)
class Effort:
    rounds: int
    beam: int
    seconds: float = math.inf  # no new round begins after them


EFFORTS = {"fast": Effort(rounds=3, beam=4), "full": Effort(rounds=12, beam=8)}


def parse_effort(text: str) -> Effort:
    """ "fast", "full" or a number of seconds a layer."""
    if text in EFFORTS:
        return EFFORTS[text]
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InputError(f"--effort {text!r}: use fast, full or a number of seconds a layer above zero")
    return Effort(rounds=1000, beam=8, seconds=seconds)


def encode(
    weight: torch.Tensor,
    format: Format,
    hessian: Hessian | torch.Tensor | None = None,
    *,
    effort: str = "fast",
    seed: int = 0,
    groups: int = 1,
    provenance: dict[str, str | int | float] | None = None,
) -> Encoding:
    """Encode one weight.

    Args:
        weight: (out, in / groups, *taps).
        hessian: second moment of the inputs, a matrix (in, in) in the order of weight.flatten(1), or one per conv group; identity if None.
        effort: "fast", "full" or seconds; the last does not repeat bit by bit.
        groups: of a grouped convolution.

    Raises:
        InputError: for NaN or infinity, a Hessian of another size, or a format that the shape can't have or that
            shares codebooks.

    >>> encoding = encode(torch.randn(32, 24), Format.parse("1x4g4"))
    >>> encoding.dequantize().shape, encoding.size_bytes
    (torch.Size([32, 24]), 288)
    """
    start = time.perf_counter()
    shape = tuple(weight.shape)
    if not torch.isfinite(weight).all():
        raise InputError(f"a weight of shape {shape} holds NaN or infinity; repair the model")
    n_in = math.prod(shape[1:])
    if format.book:
        raise InputError(
            f"format {format} shares the codebooks {format.book!r} among layers, one weight alone cannot have it; use {str(format).partition('@')[0]}"
        )
    hessian = _checked_hessian(hessian, n_in, groups)

    provenance = {**(provenance or {}), "effort": effort, "seed": seed}
    if format.kind == "asis":
        return Encoding(format, shape, {"weight": weight.detach().cpu().contiguous()}, 0.0, provenance)
    matrix = weight.detach().float().reshape(groups, -1, n_in)
    if format.kind == "int8":
        encoding = _round_to_int8(matrix, shape)
    else:
        format.tensor_specs(shape)  # refuses a format that does not fit
        encoding = _encode_additive(matrix, format, shape, hessian, parse_effort(effort), seed)
    error = relative_error(weight, encoding.dequantize(), hessian, groups)
    provenance["seconds"] = round(time.perf_counter() - start, 3)
    return Encoding(format, shape, encoding.tensors, error, provenance)


def _checked_hessian(hessian: Hessian | torch.Tensor | None, n_in: int, groups: int) -> Hessian:
    """As float32 blocks. Raises InputError for another size, NaN or infinity."""
    if hessian is None:
        return Hessian.identity(n_in, groups)
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
    return Hessian(tuple(block.float() for block in hessian.blocks))


def relative_error(weight: torch.Tensor, approximation: torch.Tensor, hessian: Hessian, groups: int = 1) -> float:
    """‖(W − Ŵ)X‖² / ‖WX‖² under H; 0 for a weight or inputs that are zero anyway."""
    w = weight.detach().float().reshape(groups, -1, hessian.n_in)
    difference = w - approximation.float().reshape_as(w)
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


def _encode_additive(matrix: torch.Tensor, format: Format, shape: tuple[int, ...], hessian: Hessian, effort: Effort, seed: int) -> Encoding:
    start = time.perf_counter()
    order = column_order(format, shape)
    n_padded = format.n_groups(shape) * format.group_size
    w = matrix if order is None else matrix[:, :, order]
    w = torch.nn.functional.pad(w, (0, n_padded - w.shape[2]))
    state = _State(w, hessian.prepared(order, n_padded, DAMPING), format, seed)
    best, best_error = state.snapshot(), state.error()
    for _ in range(effort.rounds):
        state.update_codebooks()
        state.update_scales()
        state.sweep(effort.beam)
        error = state.error()
        converged = error > best_error * 0.998
        if error < best_error:
            best, best_error = state.snapshot(), error
        if converged or time.perf_counter() - start > effort.seconds:
            break
    state.restore(best)
    state.update_codebooks()
    # The last steps see the codebooks and scales as they will be stored.
    state.round_codebooks()
    state.update_scales()
    state.scales = state.scales.half().float()
    state.sweep(effort.beam)
    codes = state.codes.reshape(shape[0], -1, format.n_codebooks)
    return Encoding.of_codes(format, shape, codes, stored_codebooks(format, state.stored), state.scales.reshape(-1))


class _State:
    """Codes, codebooks and scales in the making, and the products that the steps share."""

    def __init__(self, w: torch.Tensor, hessian: Hessian, format: Format, seed: int) -> None:
        self.w, self.hessian, self.format = w, hessian, format
        self.wh = hessian.times(w)
        self.groups, self.rows, self.columns = w.shape
        self.expansion = format.expansion.to(w.device)
        # Zero rows keep scale zero and are exact; codebooks work on rows of unit mean square.
        norms = w.square().mean(2).sqrt()
        self.scales = norms
        unit = w / torch.where(norms > 0, norms, 1.0).unsqueeze(2)
        rng = torch.Generator().manual_seed(seed)
        self.stored, self.codes = residual_kmeans(unit, hessian.diagonal, format, rng)

    # -- what the steps share --------------------------------------------------------------------------------------------------------

    @property
    def codebooks(self) -> torch.Tensor:
        """(M, K, g)"""
        return self.expansion @ self.stored

    def words(self, stored: torch.Tensor) -> torch.Tensor:
        """Unscaled sums of codewords, (S, R, n)."""
        books = self.expansion @ stored
        total = sum(books[m][self.codes[..., m]] for m in range(self.format.n_codebooks))
        return total.reshape(self.w.shape)  # type: ignore[union-attr]

    def error(self) -> float:
        """The objective, tr((Ŵ − W) H (Ŵ − W)ᵀ)."""
        difference = self.words(self.stored) * self.scales.unsqueeze(2) - self.w
        return (self.hessian.times(difference) * difference).sum(dtype=torch.float64).item()

    def snapshot(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.stored.clone(), self.codes.clone(), self.scales.clone()

    def restore(self, snapshot: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        self.stored, self.codes, self.scales = (part.clone() for part in snapshot)

    # -- scales ----------------------------------------------------------------------------------------------------------------------

    def update_scales(self) -> None:
        """scale = (w H uᵀ) / (u H uᵀ) for each row, u its unscaled codewords."""
        u = self.words(self.stored)
        energy = (self.hessian.times(u) * u).sum(2)
        exact = (self.wh * u).sum(2) / torch.where(energy > 0, energy, 1.0)
        self.scales = torch.where((energy > 0) & (self.scales != 0), exact, self.scales)

    # -- codebooks -------------------------------------------------------------------------------------------------------------------

    def _sum_by_code(self, values: torch.Tensor) -> torch.Tensor:
        """Sum (S, R, n) over the places of each codeword: (M, K, g)."""
        groups = values.reshape(-1, self.format.group_size)
        codes = self.codes.reshape(-1, self.format.n_codebooks)
        books = groups.new_zeros(self.format.n_codebooks, self.format.n_entries, self.format.group_size)
        for m in range(self.format.n_codebooks):
            books[m].index_add_(0, codes[:, m], groups)
        return books

    def update_codebooks(self, iterations: int = 24) -> None:
        """Least squares in the stored vectors by conjugate gradients, preconditioned by how much weight each vector carries."""
        scales = self.scales.unsqueeze(2)
        adjoint = self.expansion.T
        diagonal = adjoint.square() @ self._sum_by_code(self.hessian.diagonal.unsqueeze(1) * scales**2)
        ridge = 1e-6 * diagonal.mean()
        precondition = 1 / (diagonal + ridge).clamp(min=1e-30)

        def normal(x: torch.Tensor) -> torch.Tensor:
            return adjoint @ self._sum_by_code(self.hessian.times(self.words(x) * scales) * scales) + ridge * x

        x = self.stored
        residual = adjoint @ self._sum_by_code(self.wh * scales) + ridge * x - normal(x)
        z = precondition * residual
        direction, rz = z, (residual * z).sum(dtype=torch.float64)
        first = rz
        for _ in range(iterations):
            if not rz > 1e-6 * first:
                break
            image = normal(direction)
            step = (rz / (direction * image).sum(dtype=torch.float64).clamp(min=1e-300)).float()
            x = x + step * direction
            residual = residual - step * image
            z = precondition * residual
            rz, previous = (residual * z).sum(dtype=torch.float64), rz
            direction = z + (rz / previous).float() * direction
        self.stored = x

    def round_codebooks(self) -> None:
        """Replace the codebooks by what the format will store."""
        tensors = stored_codebooks(self.format, self.stored)
        stored = tensors["codebooks"].float()
        self.stored = stored * tensors["codebook_scales"].float().reshape(-1, 1, 1) if self.format.int8_codebooks else stored

    # -- codes -----------------------------------------------------------------------------------------------------------------------

    def sweep(self, beam: int) -> None:
        """Choose every group's codes anew, in order, given all others."""
        g = self.format.group_size
        books = self.codebooks
        scales = self.scales.unsqueeze(2)
        # product = (Ŵ − W) H, kept exact by adding each change times the group's rows of H
        product = self.hessian.times(self.words(self.stored) * scales) - self.wh
        for j in range(self.columns // g):
            columns = slice(j * g, (j + 1) * g)
            rows = self.hessian.rows(columns.start, columns.stop)
            block = rows[:, :, columns]
            old = sum(books[m][self.codes[:, :, j, m]] for m in range(self.format.n_codebooks))
            linear = product[:, :, columns] - (old * scales) @ block
            codes, new = best_codes(linear, block, scales, books, beam)
            # Where beam search missed the optimum, what was there may be better.
            better = _energy(new * scales, linear, block) < _energy(old * scales, linear, block)  # type: ignore[operator]
            self.codes[:, :, j] = torch.where(better.unsqueeze(2), codes, self.codes[:, :, j])
            change = torch.where(better.unsqueeze(2), new - old, 0.0) * scales
            product = product + change @ rows


def _energy(x: torch.Tensor, linear: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """2 x·linear + x block xᵀ for (S, R, g) → (S, R)."""
    return ((2 * linear + x @ block) * x).sum(2)


def best_codes(
    linear: torch.Tensor, block: torch.Tensor, scales: torch.Tensor, books: torch.Tensor, beam: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Beam search over the M codebooks of one group; exact for M = 1.

    Minimises 2 s u·linear + s² u block uᵀ over u = Σ_m c_m.

    Args:
        linear: (S, R, g); block: (S, g, g); scales: (S, R, 1); books: (M, K, g).

    Returns:
        codes (S, R, M) and their sums u (S, R, g).
    """
    groups, rows, g = linear.shape
    n_entries = books.shape[1]
    partial = linear.new_zeros(groups, rows, 1, g)  # sums of the hypotheses
    energy = linear.new_zeros(groups, rows, 1)
    codes = torch.zeros(groups, rows, 1, 0, dtype=torch.long, device=linear.device)
    s = scales.unsqueeze(2)
    for m, book in enumerate(books):
        quadratic = ((book @ block) * book).sum(2)  # (S, K)
        gradient = linear.unsqueeze(2) + s * (partial @ block.unsqueeze(1))  # (S, R, hypotheses, g)
        candidates = (energy.unsqueeze(3) + 2 * s * (gradient @ book.T) + s**2 * quadratic[:, None, None, :]).flatten(2)
        n_kept = 1 if m == len(books) - 1 else min(beam, candidates.shape[2])
        energy, index = candidates.topk(n_kept, dim=2, largest=False) if n_kept > 1 else candidates.min(2, keepdim=True)
        parent, entry = index // n_entries, index % n_entries
        partial = partial.gather(2, parent.unsqueeze(3).expand(-1, -1, -1, g)) + book[entry]
        codes = torch.cat([codes.gather(2, parent.unsqueeze(3).expand(-1, -1, -1, codes.shape[3])), entry.unsqueeze(3)], 3)
    return codes.squeeze(2), partial.squeeze(2)
