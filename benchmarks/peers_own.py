"""Methods that need sedaq's calibration, or no more than a page, and so are written here: GPTQ and k-means."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import torch
from sklearn.cluster import KMeans

from sedaq.models.hessian import Hessian

DAMPING = 0.01  # of the mean of H's diagonal, GPTQ's own
SHRINKS = torch.linspace(1, 0.2, 81).tolist()  # of a group's range, among which its grid is chosen
SMALLEST = 6e-8  # a step that float16 can hold
N_STARTS = 10  # of k-means


def on_grid(weights: torch.Tensor, step: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest points of even grids, step · (0 … 2^bits − 1 less zero)."""
    return ((weights / step).round() + zero).clamp(0, 2**bits - 1).sub(zero) * step


def choose_grid(weights: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and zero (…, 1) of a grid for the last axis: of the shrunk ranges the one of least squared error."""
    low, high = weights.amin(-1, keepdim=True).clamp(max=0), weights.amax(-1, keepdim=True).clamp(min=0)
    least = torch.full_like(low, torch.inf)
    best = torch.ones_like(low), torch.zeros_like(low)
    for share in SHRINKS:
        step = (share * (high - low) / (2**bits - 1)).clamp(min=SMALLEST).half().float()
        zero = (-share * low / step).round().clamp(0, 2**bits - 1)
        error = (on_grid(weights, step, zero, bits) - weights).square().sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, step, best[0]), torch.where(better, zero, best[1])
    return best


def column_grids(weights: torch.Tensor, bits: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and zero of every weight (…, in): one of each for a row's group of columns; the last group of a row may be shorter."""
    grids = [choose_grid(part, bits) for part in weights.split(group_size, -1)]
    widths = torch.tensor([part.shape[-1] for part in weights.split(group_size, -1)])
    steps, zeros = (torch.cat(parts, -1).repeat_interleave(widths, -1) for parts in zip(*grids, strict=True))
    return steps, zeros


def gptq(weight: torch.Tensor, hessian: Hessian, bits: int, group_size: int, damping: float = DAMPING) -> torch.Tensor:
    """Round column by column, each time moving what is not yet rounded so that the output changes least.

    Source: Frantar et al. 2023, in the triangular form of error feedback (Chen et al. 2025): with H = C Cᵀ column j of (W − Q) C depends on columns
    up to j alone, so that each is made as small as the grid allows. Grids are chosen beforehand (static groups), columns taken by falling diagonal.

    Args:
        weight: (out, in, *taps), of a grouped convolution the out of all its groups.
        hessian: of its flattened columns.
    """
    rows = weight.reshape(hessian.groups, -1, hessian.n_in).float()
    edges = [0, *accumulate(block.shape[-1] for block in hessian.blocks)]
    diagonal = hessian.diagonal.sum(0)
    order = torch.cat([start + diagonal[start:stop].argsort(descending=True, stable=True) for start, stop in pairwise(edges)])
    steps, zeros = (values[..., order] for values in column_grids(rows, bits, group_size))
    ordered = rows[..., order]
    rounded = torch.empty_like(ordered)
    for block, start in zip(hessian.prepared(order, damping).factor().blocks, edges, strict=False):
        errors = ordered.new_zeros(*ordered.shape[:2], block.shape[-1])
        for j in range(block.shape[-1]):
            column = start + j
            owed = (errors[..., :j] @ block[:, :j, j, None]).squeeze(-1) / block[:, j, j, None]
            chosen = on_grid(ordered[..., column] + owed, steps[..., column], zeros[..., column], bits)
            rounded[..., column], errors[..., j] = chosen, ordered[..., column] - chosen
    return rounded[..., order.argsort()].reshape(weight.shape)


def cluster(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Every weight at the nearest of 2^bits float16 numbers of the layer's own, by k-means."""
    values = weight.flatten().double().numpy()
    n_clusters = min(2**bits, len(np.unique(values)))
    found = KMeans(n_clusters, n_init=N_STARTS, random_state=0).fit(values[:, None])
    codebook = torch.from_numpy(found.cluster_centers_[:, 0]).half().float()
    return codebook[torch.from_numpy(found.labels_).long()].reshape(weight.shape)
