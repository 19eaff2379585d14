"""What `sedaq bench model` measures, on a tiny model and its quantized folder."""

from __future__ import annotations

import pytest
import torch

from sedaq.aq.modules.layers import quantized_modules
from sedaq.aq.profiling import model_bench
from sedaq.aq.profiling.model_bench import in_bfloat16, model_steps
from sedaq.errors import InputError
from sedaq.models.loading import load
from sedaq.models.sampling import SamplingConfig


def test_rows_of_full_precision_and_quantized_models(dit_folder, quantized, monkeypatch):
    monkeypatch.setattr(model_bench, "_in_own_process", lambda name, arithmetic, n_images: 123)
    names = [str(dit_folder), str(quantized)]
    rows = model_steps(names, arithmetics=("float32", "bfloat16", "a8"), n_images=2, repeats=1)
    assert [(row["subject"], row["arithmetic"]) for row in rows] == [
        (name, arithmetic) for name in names for arithmetic in ("float32", "bfloat16", "a8") if (name, arithmetic) != (names[0], "a8")
    ]
    for row in rows:
        assert row["seconds_per_step"] > 0 and row["peak_bytes"] == 123 and row["n_images"] == 2
        assert row["operations"]["dense_multiply_adds"] == rows[0]["operations"]["dense_multiply_adds"]
        assert sum(layer["ms"] for layer in row["layers"]) > 0 and all(layer["tokens"] > 0 for layer in row["layers"])
    dense, coded = rows[0], rows[2]
    assert dense["operations"]["lookup_additions"] == 0 < coded["operations"]["lookup_additions"]
    assert coded["operations"]["bytes_read"] < dense["operations"]["bytes_read"] / 2
    assert {layer["planned"] for layer in dense["layers"]} == {"float32"} and "1x4g4" in {layer["planned"] for layer in coded["layers"]}


def test_memory_is_that_of_a_process_of_its_own(dit_folder):
    """Some megabytes for a tiny model, none of which are this process's."""
    ballast = torch.ones(300_000_000, dtype=torch.uint8)
    assert 1e5 < model_bench._in_own_process(str(dit_folder), "float32", 1) < len(ballast)


def test_a_model_in_bfloat16_computes_what_it_did(quantized):
    subject = load(quantized, quantized=True)
    before = subject.sample(SamplingConfig(steps=2), seed=0, n_images=2)
    codes = {name: module.codes.clone() for name, module in quantized_modules(subject.denoiser).items()}
    in_bfloat16(subject.denoiser)
    after = subject.sample(SamplingConfig(steps=2), seed=0, n_images=2)
    assert after.dtype == torch.float32 and 0 < (after - before).abs().max() < 0.1
    assert all(torch.equal(module.codes, codes[name]) for name, module in quantized_modules(subject.denoiser).items())


def test_wrong_arithmetic(dit_folder):
    with pytest.raises(InputError, match="arithmetic 'float16' is unknown; choose among float32, bfloat16, a8"):
        model_steps([str(dit_folder)], arithmetics=["float32", "float16"])
    with pytest.raises(InputError, match="a8 is for models with codes"):
        model_steps([str(dit_folder)], arithmetics=["a8"])
