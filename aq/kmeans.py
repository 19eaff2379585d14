"""The start of an encoding: k-means on what the codebooks before have left, in the metric of the Hessian's diagonal."""

from __future__ import annotations

import torch

from .formats import Format

ITERATIONS = 8
CHUNK = 1 << 24  # distances held at once


def assign(vectors: torch.Tensor, weights: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Nearest centre of each vector under Σ_d weights_d (v_d − c_d)²: (N, g), (N, g), (K, g) → (N,)."""
    step = max(1, CHUNK // len(centres))
    squares = centres.square()
    return torch.cat(
        [(w @ squares.T - 2 * (w * v) @ centres.T).argmin(1) for v, w in zip(vectors.split(step), weights.split(step), strict=True)]
    )


def update(vectors: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor, old: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Weighted means of the vectors of each centre; an empty centre moves to a vector drawn at random."""
    totals = torch.zeros_like(old).index_add_(0, codes, weights * vectors)
    mass = torch.zeros_like(old).index_add_(0, codes, weights)
    centres = torch.where(mass > 0, totals / mass.clamp(min=1e-30), old)
    empty = torch.bincount(codes, minlength=len(old)) == 0
    drawn = torch.randint(len(vectors), (len(old),), generator=rng).to(vectors.device)
    return torch.where(empty.unsqueeze(1), vectors[drawn], centres)


def kmeans(vectors: torch.Tensor, weights: torch.Tensor, n_centres: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's algorithm from randomly drawn vectors. Returns centres (n_centres, g) and codes (N,)."""
    drawn = torch.randperm(len(vectors), generator=rng)[:n_centres]
    if len(drawn) < n_centres:  # a layer smaller than its codebook
        drawn = torch.cat([drawn, torch.randint(len(vectors), (n_centres - len(drawn),), generator=rng)])
    centres = vectors[drawn.to(vectors.device)].clone()
    for _ in range(ITERATIONS):
        centres = update(vectors, weights, assign(vectors, weights, centres), centres, rng)
    return centres, assign(vectors, weights, centres)


def residual_kmeans(unit: torch.Tensor, diagonal: torch.Tensor, format: Format, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored vectors (M, stored, g) and codes (S, R, G, M) for rows of unit mean square.

    Args:
        unit: (S, R, n), n = G·g.
        diagonal: of H, (S, n).
    """
    g = format.group_size
    vectors = unit.reshape(-1, g)
    # Square roots temper a few strong inputs, which would leave the rest of the codebook empty.
    tempered = (diagonal / diagonal.mean().clamp(min=1e-30)).sqrt().clamp(min=1e-4)
    weights = tempered.unsqueeze(1).expand(unit.shape).reshape(-1, g)
    stored, codes = [], []
    for _ in range(format.n_codebooks):
        book = _structured_book(vectors, weights, format, rng)
        chosen = assign(vectors, weights, format.expansion.to(book) @ book)
        vectors = vectors - (format.expansion.to(book) @ book)[chosen]
        stored.append(book)
        codes.append(chosen)
    return torch.stack(stored), torch.stack(codes, -1).reshape(unit.shape[0], unit.shape[1], -1, format.n_codebooks)


def _structured_book(vectors: torch.Tensor, weights: torch.Tensor, format: Format, rng: torch.Generator) -> torch.Tensor:
    """Stored vectors of one codebook, (stored, g)."""
    if format.structure == "h":
        half = format.n_stored_entries // 2
        first, codes = kmeans(vectors, weights, half, rng)
        second, _ = kmeans(vectors - first[codes], weights, half, rng)
        return torch.cat([first, second])
    if format.structure == "m":
        # v and −v are the same up to sign: cluster them with a common sign.
        signs = torch.where((vectors * weights).sum(1, keepdim=True) < 0, -1.0, 1.0)
        return kmeans(vectors * signs, weights, format.n_stored_entries, rng)[0]
    return kmeans(vectors, weights, format.n_entries, rng)[0]
