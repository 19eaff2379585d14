"""Captions that are true of the picture: which digit, how thick its stroke is, and which way it leans.

    a thick handwritten seven, leaning right

Stroke and slant are measured, so that a caption can be held against the image that a model made of it.
"""

from __future__ import annotations

import torch

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STROKES = ("thin", "medium", "thick")
SLANTS = ("leaning left", "upright", "leaning right")
# Thirds of MNIST's training images: widths in pixels; shears, that of a vertical stroke being 0. Handwriting leans right on average.
STROKE_EDGES = (2.4, 2.85)
SLANT_EDGES = (0.0, 0.24)


def stroke_width(images: torch.Tensor) -> torch.Tensor:
    """Pixels, (n,), of images (n, 1, H, W) in [0, 1]: twice the ink over the length of its edge, which is the total variation."""
    ink = images[:, 0].double()
    padded = torch.nn.functional.pad(ink, (1, 1, 1, 1))
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    return 2 * ink.sum((1, 2)) / torch.hypot(across, down).sum((1, 2)).clamp(min=1e-9)


def slant(images: torch.Tensor) -> torch.Tensor:
    """Pixels to the right per pixel upwards, (n,), of images (n, 1, H, W) in [0, 1]: the shear that their second moments have."""
    ink = images[:, 0].double()
    mass = ink.sum((1, 2)).clamp(min=1e-9)
    x, y = torch.arange(ink.shape[2], dtype=torch.double), torch.arange(ink.shape[1], dtype=torch.double)
    columns, rows = ink.sum(1), ink.sum(2)
    dx = x - ((columns * x).sum(1) / mass).unsqueeze(1)
    dy = y - ((rows * y).sum(1) / mass).unsqueeze(1)
    shared = torch.einsum("nyx,ny,nx->n", ink, dy, dx)
    return -shared / (rows * dy.square()).sum(1).clamp(min=1e-9)


def strokes_of(images: torch.Tensor) -> torch.Tensor:
    """Indices into STROKES, (n,)."""
    return torch.bucketize(stroke_width(images), torch.tensor(STROKE_EDGES, dtype=torch.double))


def slants_of(images: torch.Tensor) -> torch.Tensor:
    """Indices into SLANTS, (n,)."""
    return torch.bucketize(slant(images), torch.tensor(SLANT_EDGES, dtype=torch.double))


def caption(digit: int, stroke: int | None, lean: int | None) -> str:
    """The caption of a digit 0 to 9 and of indices into STROKES and SLANTS; None leaves that part out.

    >>> caption(7, 2, 2), caption(1, None, 0)
    ('a thick handwritten seven, leaning right', 'a handwritten one, leaning left')
    """
    width = "" if stroke is None else f"{STROKES[stroke]} "
    return f"a {width}handwritten {DIGITS[digit]}" + ("" if lean is None else f", {SLANTS[lean]}")


def all_captions() -> list[str]:
    """Every caption there is, with and without its parts: 160."""
    strokes, leans = (None, *range(len(STROKES))), (None, *range(len(SLANTS)))
    return [caption(digit, stroke, lean) for digit in range(len(DIGITS)) for stroke in strokes for lean in leans]


def full_captions() -> list[str]:
    """Those that name digit, stroke and slant: 90, in an order in which any few that follow each other differ in all three."""
    return [caption(i % 10, i // 30, (i + i // 10) % 3) for i in range(90)]
