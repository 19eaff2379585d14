"""DiT-XL/2's architecture with random weights, in full and with codes at 2 bits:  python benchmarks/dit_xl.py      → results/dit_xl.json

Seconds of a sampling step, peak memory and operations, as `sedaq bench model` finds them; both can be named there too, as benchmarks/dit_xl.py:full
and benchmarks/dit_xl.py:coded (2x8g8) and :hierarchical (2x8g8h). Random codes cost what fitted ones cost.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import nn

from sedaq import Subject
from sedaq.aq.encoding import Encoding
from sedaq.aq.formats import Format
from sedaq.aq.modules.layers import quantized_module, quantized_modules, set_module
from sedaq.models.adapters.denoiser import DenoiserAdapter

SHAPE: dict[str, Any] = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 32, "patch_size": 2}


def _subject(denoiser: nn.Module, name: str) -> Subject:
    scheduler = DDIMScheduler()
    return Subject(
        denoiser, sample=DenoiserAdapter(denoiser, scheduler, list(range(1000)), None, 4), conditions=list(range(1000)), name=name
    )


def full() -> Subject:
    torch.manual_seed(0)
    return _subject(DiTTransformer2DModel(**SHAPE, in_channels=4, out_channels=8, num_embeds_ada_norm=1000), "DiT-XL/2")


def coded() -> Subject:
    return _coded(Format.parse("2x8g8"))


def hierarchical() -> Subject:
    return _coded(Format.parse("2x8g8h"))


def _coded(format: Format) -> Subject:
    """Every Linear layer with codes; its dense weights are never in memory."""
    rng = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        denoiser = DiTTransformer2DModel(**SHAPE, in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    linear = {path: module for path, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
    for path in linear:
        set_module(denoiser, path, nn.Identity())
    denoiser.to_empty(device="cpu")
    for tensor in [*denoiser.parameters(), *denoiser.buffers()]:
        if tensor.is_floating_point():
            tensor.data.normal_(0, 0.02, generator=rng)
    for path, module in linear.items():
        n_out, n_in = module.weight.shape
        codes = torch.randint(format.n_entries, (n_out, format.n_groups((n_out, n_in)), format.n_codebooks), generator=rng)
        books = torch.randn(format.n_codebooks, format.n_stored_entries, format.group_size, generator=rng)
        encoding = Encoding.of_codes(format, (n_out, n_in), codes, {"codebooks": books.half()}, torch.full((n_out,), 0.02))
        module.bias = None if module.bias is None else nn.Parameter(torch.zeros(n_out))
        set_module(denoiser, path, quantized_module(module, "linear", encoding))
    for layer in quantized_modules(denoiser).values():
        layer.prepare()
    return _subject(denoiser, f"DiT-XL/2 in {format}")


def main() -> None:
    from results import keep

    from sedaq.aq.profiling.model_bench import model_steps

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--arithmetics", nargs="+", default=["float32", "bfloat16", "a8"])
    parser.add_argument("--name", default="dit_xl")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = [f"{Path(__file__)}:{function}" for function in ("full", "coded", "hierarchical")]
    rows = []
    for images in arguments.images:
        for row in model_steps(names, arithmetics=arguments.arithmetics, n_images=images, repeats=3):
            del row["layers"]
            row["subject"] = row["subject"].rpartition(":")[2]
            print(row, flush=True)
            rows.append(row)
    keep(arguments.name, "python benchmarks/dit_xl.py " + " ".join(sys.argv[1:]), rows)


if __name__ == "__main__":
    main()
