"""A quantized layer is everything that callers use a layer for: its class, and a weight that has values when they are read."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.formats import Format
from sedaq.aq.modules.layers import AQConv2d, AQLinear, quantized_module
from sedaq.errors import InputError
from sedaq.models.layers import find_layers


@pytest.fixture(params=["linear", "conv2d"])
def layer(request):
    torch.manual_seed(0)
    dense = nn.Linear(12, 8) if request.param == "linear" else nn.Conv2d(4, 8, 3, padding=1)
    return quantized_module(dense, request.param, encode(dense.weight, Format.parse("1x4g4")))


def dense(layer) -> torch.Tensor:
    from sedaq.aq.encoding import Encoding

    return Encoding(layer.format, layer.shape, layer.stored, 0.0).dequantize()


def test_it_is_a_layer_of_torch(layer):
    assert isinstance(layer, nn.Linear if isinstance(layer, AQLinear) else nn.Conv2d)
    assert [name for name, _ in layer.named_parameters()] == ["bias"] and "weight" not in layer.state_dict()


def test_shape_dtype_and_device_cost_nothing(layer, monkeypatch):
    monkeypatch.setattr(type(layer), "matrix", lambda self: pytest.fail("de-quantized"))
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device.type, weight.ndim) == (
        torch.Size(layer.shape),
        torch.float32,
        "cpu",
        len(layer.shape),
    )
    assert weight.numel() == layer.weight.data.numel() and not weight.requires_grad and weight.detach().shape == weight.shape
    assert "float32" in repr(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_are_those_of_the_codes_in_the_modules_dtype(layer, dtype):
    layer.to(dtype)
    assert layer.weight.dtype == dtype == layer.bias.dtype
    assert torch.equal(layer.weight + 0, dense(layer).to(dtype))
    assert torch.equal(layer.weight[0], dense(layer).to(dtype)[0])
    assert layer.scales.dtype == torch.float16, "a cast leaves what is stored"


def test_reading_is_said_once(layer, caplog):
    with caplog.at_level(logging.INFO, logger="sedaq"):
        layer.weight.sum(), layer.weight.sum()
        layer(torch.randn((2, *([12] if isinstance(layer, AQLinear) else [4, 5, 5]))))
    assert len(caplog.records) == 1


def test_products_with_it_are_those_of_the_layer(layer):
    if isinstance(layer, AQConv2d):
        x = torch.randn(2, 4, 5, 5)
        torch.testing.assert_close(nn.functional.conv2d(x, layer.weight, layer.bias, padding=1), layer(x), atol=1e-5, rtol=1e-5)
    else:
        x = torch.randn(2, 12)
        torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x), atol=1e-5, rtol=1e-5)


def test_nothing_is_written_to_it(layer):
    with pytest.raises(InputError, match="cannot be written"):
        layer.weight.mul_(2)
    with pytest.raises(InputError, match="cannot be written"):
        layer.weight.data += 1
    before = dense(layer)
    layer.reset_parameters()
    assert torch.equal(dense(layer), before)


def test_copies_keep_it(layer):
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.weight + 0, dense(layer)) and other.weight.layer is other


def test_layers_with_codes_are_not_eligible_again(layer):
    model = nn.Sequential(layer, nn.Linear(3, 3))
    assert [found.name for found in find_layers(model)] == ["1"]


def test_z_image_asks_its_layers_for_their_weights():
    """diffusers' ZImageTransformer2DModel reads the dtype of `layer.weight`."""
    from diffusers import ZImageTransformer2DModel

    from sedaq.aq.modules.quantize import quantize_
    from sedaq.aq.plans.plan import Plan
    from sedaq.models.subject import Subject

    torch.manual_seed(0)
    small = {
        "all_patch_size": (2,),
        "all_f_patch_size": (1,),
        "in_channels": 4,
        "dim": 32,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 2,
    }
    model = ZImageTransformer2DModel(**small, n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[64, 32, 32]).eval()
    for name, parameter in model.named_parameters():
        if "pad_token" in name:
            parameter.data.zero_()
    subject = Subject(model, sample=lambda **_: torch.zeros(1, 1, 8, 8), name="z")
    plan = Plan.of(subject, {layer.name: Format.parse("int8") for layer in subject.layers})
    inputs = [torch.randn(4, 1, 8, 8)], torch.tensor([0.5]), [torch.randn(7, 16)]
    with torch.inference_mode():
        wanted = model(*inputs, return_dict=False)[0][0]
        quantize_(model, plan)
        found = model(*inputs, return_dict=False)[0][0]
    torch.testing.assert_close(found, wanted, atol=0.05 * wanted.abs().max().item(), rtol=0.05)
    assert not torch.equal(found, wanted)
