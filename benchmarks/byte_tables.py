"""The unit of byte tables, on the shipped models' own activations:  python benchmarks/byte_tables.py      → results/byte_tables.json

Relative error of products by tables of bytes (kernels/csrc/lookup.h) for several rules of their unit, every third layer of mnist-dit and mnist-unet in six
formats. A unit is 1/127 of the greatest entry that is not clipped.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from results import keep

import sedaq
from sedaq.aq.encoder.encoder import encode
from sedaq.aq.encoding import quantized_matrix
from sedaq.aq.formats import Format
from sedaq.kernels.dispatch import rounded
from sedaq.kernels.quantized_matrix import QuantizedMatrix
from sedaq.models.calibration import input_columns
from sedaq.models.hooks import hooking, input_of
from sedaq.models.sampling import SamplingConfig
from sedaq.progress import track

FORMATS = ("1x8g8", "2x8g8", "3x8g16", "2x8g8h", "1x6g3", "3x8g24")
TOKENS = 64  # of each layer

Rule = Callable[[torch.Tensor, float, float, torch.Tensor], torch.Tensor]
# From the norm of a token's largest group, that of the longest codeword, the deviation of the widest codebook, and all its entries.
RULES: dict[str, Rule] = {
    "bound": lambda largest, longest, deviation, entries: largest * longest,
    **{
        f"bound, or {n} deviations": lambda largest, longest, deviation, entries, n=n: largest * min(longest, n * deviation)
        for n in (3, 4, 5)
    },
    "greatest entry": lambda largest, longest, deviation, entries: entries.abs().amax((1, 2, 3)),
}


def layers_inputs(name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weight and input columns (tokens, in) of every third layer."""
    subject, rng = sedaq.load(name), torch.Generator().manual_seed(0)
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)

    def hook(layer: Any, module: Any, args: Any, kwargs: Any) -> None:
        columns = input_columns(input_of(args, kwargs).detach(), layer, module).flatten(0, -2)
        seen[layer.name].append(columns[torch.randperm(len(columns), generator=rng)[: TOKENS // 4]])

    layers = [layer for layer in subject.layers[::3] if layer.groups == 1 and layer.shape[0] >= 32]
    with hooking(subject.denoiser, before={layer.name: partial(hook, layer) for layer in layers}):
        subject.sample(SamplingConfig(steps=4), seed=1, n_images=8)
    return {layer.name: (subject.weight(layer.name), torch.cat(seen[layer.name])[:TOKENS]) for layer in layers}


def errors(matrix: QuantizedMatrix, x: torch.Tensor) -> dict[str, float]:
    """Relative error of the product by tables of bytes, for every rule."""
    n_groups, g = matrix.codes.shape[1], matrix.codebooks.shape[2]
    columns = x if matrix.order is None else x[:, matrix.order]
    groups = torch.nn.functional.pad(columns, (0, n_groups * g - matrix.n_in)).unflatten(1, (n_groups, g))
    entries = torch.einsum("tjg,mkg->tjmk", groups, matrix.codebooks)
    codes = matrix.codes.long().permute(1, 2, 0).expand(len(x), -1, -1, -1)

    def product(tables: torch.Tensor) -> torch.Tensor:
        return tables.gather(3, codes).sum((1, 2)) * matrix.scales

    exact, found = product(entries), {}
    of_token = groups.norm(dim=2).amax(1)
    of_books = matrix.codebooks.norm(dim=2).max().item(), matrix.codebooks.square().mean((1, 2)).max().sqrt().item()
    for name, rule in RULES.items():
        unit = (rule(of_token, *of_books, entries) / 127).clamp(min=1e-30).view(-1, 1, 1, 1)
        found[name] = ((product((entries / unit).round().clamp(-128, 127) * unit) - exact).norm() / exact.norm()).item()
    return found


def main() -> None:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for model in ("mnist-dit", "mnist-unet"):
        for weight, x in track(list(layers_inputs(model).values()), model):
            found["activations", "8 bits"].append(((rounded(x) - x).norm() / x.norm()).item())
            for text in FORMATS:
                format, shape = Format.parse(text), tuple(weight.shape)
                matrix = quantized_matrix(format, shape, encode(weight, format, effort="draft", seed=0).tensors)
                for rule, error in errors(matrix, x).items():
                    found[text, rule].append(error)
    rows = [
        {"format": text, "rule": rule, "n": len(values), "median": statistics.median(values), "greatest": max(values)}
        for (text, rule), values in found.items()
    ]
    for row in rows:
        print(row)
    keep("byte_tables", "python benchmarks/byte_tables.py", rows)


if __name__ == "__main__":
    main()
