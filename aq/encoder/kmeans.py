"""The start of an encoding: k-means on what the codebooks before have left, in the metric of the Hessian's g×g blocks.

A vector v of row r at group j is off by s_r² (v − c)ᵀ H_jj (v − c) when codeword c stands for it, so that is the distance, and a centre is
the solution of Σ s_r² H_jj c = Σ s_r² H_jj v over its vectors. AQLM's start in the plain metric is far worse at 2 bits (OA-EM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..formats import Format
from . import native
from .beam import smallest
from .part import Part, total


@dataclass
class Cloud:
    """Vectors of some rows: (P, R, g) at P = S·G places, their metrics (P, g, g), and weights of the rows (P, R)."""

    vectors: torch.Tensor
    metric: torch.Tensor
    mass: torch.Tensor

    @classmethod
    def of(cls, part: Part, g: int, n_rows: int) -> Cloud:
        """The first `n_rows` rows of each conv group, brought to unit mean square."""
        w, scales = part.w[:, :n_rows], part.scales[:, :n_rows]
        unit = w / torch.where(scales > 0, scales, 1.0)
        vectors = unit.unflatten(2, (-1, g)).transpose(1, 2).flatten(0, 1)
        metric = part.hessian.diagonal_blocks(g).flatten(0, 1)
        mass = scales.square().squeeze(2).repeat_interleave(w.shape[2] // g, 0)
        return cls(vectors.contiguous(), metric.contiguous(), mass)

    @property
    def rows(self) -> native.Rows:
        """As the C++ loops take them."""
        return self.vectors, self.metric, self.mass

    def assign(self, centres: torch.Tensor) -> torch.Tensor:
        """The nearest centre of each vector: (K, g) → (P, R)."""
        if native.library():
            return native.assign(self.rows, centres)
        quadratic = ((centres @ self.metric) * centres).sum(2)
        result = []
        step = max(1, (1 << 22) // (self.vectors.shape[1] * len(centres)))  # distances held at once
        for start in range(0, len(self.vectors), step):
            there = slice(start, start + step)
            weighted = self.vectors[there] @ self.metric[there]
            distances = torch.baddbmm(quadratic[there].unsqueeze(1), weighted, centres.T.expand(len(weighted), -1, -1), alpha=-2)
            result.append(smallest(distances.flatten(0, 1), 1)[1].view(distances.shape[:2]))
        return torch.cat(result)

    def sums(self, codes: torch.Tensor, n_centres: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Both sides of every centre's equation: (K, g, g), (K, g)."""
        g = self.vectors.shape[2]
        weighted = (self.vectors @ self.metric) * self.mass.unsqueeze(2)
        right = weighted.new_zeros(n_centres, g).index_add_(0, codes.reshape(-1), weighted.reshape(-1, g))
        mass = self.mass.new_zeros(len(self.mass), n_centres).scatter_add_(1, codes, self.mass)
        left = (mass.T @ self.metric.flatten(1)).view(n_centres, g, g)
        return left, right

    def equations(self, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`sums` of the vectors given to their nearest centres."""
        if native.library():
            return native.equations(self.rows, centres)
        return self.sums(self.assign(centres), len(centres))

    def minus(self, centres: torch.Tensor, codes: torch.Tensor) -> Cloud:
        """What the centres (K, g) that codes (P, R) name leave of the vectors."""
        return Cloud(self.vectors - centres[codes], self.metric, self.mass)

    def up_to_sign(self) -> Cloud:
        """v or −v, whichever points to the positive side: mirrored codebooks hold both."""
        return Cloud(self.vectors * torch.where(self.vectors.sum(2, keepdim=True) < 0, -1.0, 1.0), self.metric, self.mass)


def _draw(clouds: Sequence[Cloud], n: int, rng: torch.Generator) -> torch.Tensor:
    """n vectors at random, none twice while there are enough."""
    sizes = torch.tensor([cloud.mass.numel() for cloud in clouds])
    n_vectors = int(sizes.sum())
    drawn = torch.randperm(n_vectors, generator=rng)[:n]
    if len(drawn) < n:  # a layer smaller than its codebook
        drawn = torch.cat([drawn, torch.randint(n_vectors, (n - len(drawn),), generator=rng)])
    vectors = torch.empty(n, clouds[0].vectors.shape[2])
    for cloud, end, size in zip(clouds, sizes.cumsum(0).tolist(), sizes.tolist(), strict=True):
        here = (drawn >= end - size) & (drawn < end)
        vectors[here] = cloud.vectors.flatten(0, 1)[drawn[here] - (end - size)]
    return vectors


def kmeans(clouds: Sequence[Cloud], n_centres: int, iterations: int, rng: torch.Generator) -> torch.Tensor:
    """Lloyd's algorithm from randomly drawn vectors; a centre that lost its vectors moves to another that was drawn. Returns (K, g)."""
    drawn = _draw(clouds, 2 * n_centres + 64, rng)
    centres, spares, n_lost = drawn[:n_centres], drawn[n_centres:], 0
    if native.library():
        return native.kmeans([cloud.rows for cloud in clouds], centres, spares, iterations)
    eye = torch.eye(centres.shape[1], dtype=torch.float64)
    for _ in range(iterations):
        left, right = (total(sums).double() for sums in zip(*(cloud.equations(centres) for cloud in clouds), strict=True))
        size = left.diagonal(dim1=1, dim2=2).mean(1)
        ridge = (1e-4 * size + torch.finfo(torch.float32).tiny).view(-1, 1, 1) * eye
        moved = torch.linalg.solve(left + ridge, right).float()
        lost = (size == 0).nonzero().squeeze(1)
        moved[lost] = spares[(n_lost + torch.arange(len(lost))) % len(spares)]
        n_lost += len(lost)
        centres = moved
    return centres


def residual_kmeans(parts: Sequence[Part], format: Format, iterations: int, max_vectors: int, rng: torch.Generator) -> torch.Tensor:
    """Stored vectors (M, stored, g), each codebook fitted to what those before left of at most about `max_vectors` vectors."""
    g = format.group_size
    n_vectors = sum(part.w.numel() // g for part in parts)
    share = min(1.0, max_vectors / n_vectors)
    clouds = [Cloud.of(part, g, max(1, round(share * part.w.shape[1]))) for part in parts]
    expansion = format.expansion
    stored = []
    for _ in range(format.n_codebooks):
        book = _structured_book(clouds, format, iterations, rng)
        stored.append(book)
        centres = expansion @ book
        clouds = [cloud.minus(centres, cloud.assign(centres)) for cloud in clouds]
    return torch.stack(stored)


def _structured_book(clouds: Sequence[Cloud], format: Format, iterations: int, rng: torch.Generator) -> torch.Tensor:
    """Stored vectors of one codebook, (stored, g)."""
    if format.structure == "h":
        half = format.n_stored_entries // 2
        first = kmeans(clouds, half, iterations, rng)
        left = [cloud.minus(first, cloud.assign(first)) for cloud in clouds]
        return torch.cat([first, kmeans(left, half, iterations, rng)])
    if format.structure == "m":
        return kmeans([cloud.up_to_sign() for cloud in clouds], format.n_stored_entries, iterations, rng)
    return kmeans(clouds, format.n_entries, iterations, rng)
