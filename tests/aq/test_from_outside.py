"""A format that is no sum of codewords, added from here: one row of the table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.export.apply import apply
from sedaq.aq.formats import Format
from sedaq.aq.modules.layers import AQLinear, densify
from sedaq.aq.packing import pack, unpack
from sedaq.aq.plans.plan import Plan
from sedaq.aq.profiling.step_times import _shapes_only
from sedaq.aq.scalar_formats import SCALAR_FORMATS, ScalarFormat
from sedaq.kernels.quantized_matrix import QuantizedMatrix
from sedaq.models.folders import WEIGHTS_FILE
from sedaq.models.loading import load
from sedaq.models.sampling import SamplingConfig
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings


def specs(shape, stored):
    return {"codes": (torch.uint8, (math.ceil(math.prod(shape) / 4),)), "scales": (torch.float16, (shape[0],))}


def ternary(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """−1, 0 or 1 times the mean magnitude of the row."""
    scales = rows.abs().mean(1).half()
    codes = (rows / scales.float().unsqueeze(1)).round().clamp(-1, 1) + 1
    return {"codes": pack(codes.to(torch.uint8), 2), "scales": scales}


def matrix(shape, tensors) -> QuantizedMatrix:
    n_in, scales = math.prod(shape[1:]), tensors["scales"].float()
    codes = unpack(tensors["codes"], 2, (shape[0], n_in, 1))
    numbers = torch.tensor([-1.0, 0.0, 1.0, 0.0], device=scales.device).reshape(1, 4, 1)
    return QuantizedMatrix(codes, numbers, scales, n_in, taps=math.prod(shape[2:]))


@pytest.fixture
def ternary_format(monkeypatch) -> Format:
    monkeypatch.setitem(SCALAR_FORMATS, "ternary", ScalarFormat(2.0, specs, ternary, matrix))
    return Format.parse("ternary")


@pytest.mark.parametrize("shape", [(6, 10), (4, 3, 3, 3)])
def test_it_is_encoded_counted_and_decoded(ternary_format, shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    encoding = encode(weight, ternary_format)
    rows = weight.flatten(1)
    scales = rows.abs().mean(1, keepdim=True).half().float()
    torch.testing.assert_close(encoding.dequantize(), ((rows / scales).round().clamp(-1, 1) * scales).reshape(shape))
    assert encoding.size_bytes == ternary_format.size_bytes(shape) == math.ceil(weight.numel() / 4) + 2 * shape[0]
    assert 0 < encoding.error < 1
    planned, made = _shapes_only(ternary_format, shape, ""), matrix(shape, encoding.tensors)
    assert (planned.codes.shape, planned.codebooks.shape) == (made.codes.shape, made.codebooks.shape)


def test_a_layer_multiplies_by_it(ternary_format):
    torch.manual_seed(0)
    encoding = encode(torch.randn(6, 10), ternary_format)
    x = torch.randn(5, 10)
    torch.testing.assert_close(AQLinear(encoding)(x), nn.functional.linear(x, encoding.dequantize()))


def test_it_is_on_menus_and_a_folder_holds_it(ternary_format, dit_folder, tmp_path):
    run = Run.begin(
        str(dit_folder), tmp_path / "run", Settings(n_images=8, sampling=SamplingConfig(steps=2), calibration_images=8, calibration_steps=2)
    )
    assert all(ternary_format in {entry.format for entry in menu} for menu in run.menus.values())
    plan = Plan.of(run.subject, dict.fromkeys(run.menus, ternary_format), encoding=run.store.identity)
    apply(run.subject, plan, run.store, tmp_path / "ternary")
    assert (tmp_path / "ternary" / WEIGHTS_FILE).stat().st_size == plan.size_bytes
    loaded = load(tmp_path / "ternary", quantized=True)
    layer = run.subject.layers[0]
    densify(loaded.denoiser)
    assert torch.equal(loaded.denoiser.get_submodule(layer.name).weight, run.store.get(layer, ternary_format).dequantize())
