"""Coded layers against torch's own with the de-quantized weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.encoding import Encoding
from sedaq.aq.formats import Format
from sedaq.aq.modules.layers import AQConv1d, AQConv2d, AQConv3d, AQLinear, densify, quantized_module
from sedaq.aq.modules.quantize import quantize_
from sedaq.errors import InputError

KERNELS = ("reference", "dequantize")
CONVOLUTIONS = {1: (nn.Conv1d, AQConv1d), 2: (nn.Conv2d, AQConv2d), 3: (nn.Conv3d, AQConv3d)}


@pytest.fixture(params=[*KERNELS, None])
def kernel(request, monkeypatch):
    if request.param is None:
        monkeypatch.delenv("SEDAQ_KERNEL", raising=False)
    else:
        monkeypatch.setenv("SEDAQ_KERNEL", request.param)
    return request.param


def twins(dense: nn.Module, kind: str, text: str) -> tuple[nn.Module, nn.Module]:
    """The dense module with the de-quantized weight, and the quantized one."""
    encoding = encode(dense.weight, Format.parse(text), groups=getattr(dense, "groups", 1))
    with torch.no_grad():
        dense.weight.copy_(encoding.dequantize())
    return dense.requires_grad_(False), quantized_module(dense, kind, encoding)


@pytest.mark.parametrize("text", ["1x4g4", "2x3g5mq", "1x4g4h", "int8"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_linear(text, bias, leading, kernel):
    torch.manual_seed(0)
    dense, quantized = twins(nn.Linear(13, 7, bias=bias), "linear", text)
    x = torch.randn(*leading, 13)
    assert isinstance(quantized, AQLinear)
    torch.testing.assert_close(quantized(x), dense(x), atol=1e-5, rtol=1e-5)


GEOMETRIES = [
    {},
    {"stride": 2},
    {"padding": 1},
    {"padding": 2, "dilation": 2, "stride": 2},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"groups": 2},
    {"groups": 4, "padding": 1},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "circular", "groups": 2},
    {"bias": False},
    {"padding": "valid"},
    {"kernel_size": 4, "padding": "same"},
]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolutions(dimensions, geometry, kernel):
    torch.manual_seed(0)
    dense_class, quantized_class = CONVOLUTIONS[dimensions]
    dense, quantized = twins(
        dense_class(4, 8, **{"kernel_size": 3, **geometry}),
        f"conv{dimensions}d",
        "1x3g3t" if dimensions == 1 and "kernel_size" not in geometry else "1x4g4",
    )
    x = torch.randn(2, 4, *(7, 6, 5)[:dimensions])
    assert isinstance(quantized, quantized_class)
    torch.testing.assert_close(quantized(x), dense(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "text"), [((2, 3), "1x4g4"), ((3, 1), "1x4g3t"), ((1, 1), "1x4g4"), ((3, 3), "1x4g9t"), ((3, 3), "1x4g4c")]
)
def test_kernels_that_are_not_square(size, text, kernel):
    torch.manual_seed(0)
    dense, quantized = twins(nn.Conv2d(6, 5, size, stride=(2, 1), padding=(1, 0)), "conv2d", text)
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(quantized(x), dense(x), atol=1e-5, rtol=1e-5)


def test_an_empty_batch_of_images(kernel):
    dense, quantized = twins(nn.Conv2d(4, 8, 3, padding=1), "conv2d", "1x4g4")
    x = torch.randn(0, 4, 5, 5)
    assert quantized(x).shape == dense(x).shape == (0, 8, 5, 5)


@pytest.mark.parametrize(("precision", "least", "most"), [("bf16", 0, 1e-2), ("a8", 1e-3, 3e-2)])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_precisions_are_near_exact(precision, least, most, kind, kernel):
    """bf16 may be served by a finer kernel; a8 always rounds."""
    torch.manual_seed(0)
    dense, x = (nn.Linear(64, 32), torch.randn(9, 64)) if kind == "linear" else (nn.Conv2d(16, 8, 3, padding=1), torch.randn(2, 16, 6, 6))
    _, quantized = twins(dense, kind, "1x4g4")
    exact = quantized(x)
    quantized.precision = precision
    rough = quantized(x)
    assert rough.dtype == exact.dtype
    assert least <= ((rough - exact).norm() / exact.norm()).item() < most


def test_eight_bit_activations_have_a_scale_a_token(monkeypatch):
    """By a kernel that rounds nothing else."""
    monkeypatch.setenv("SEDAQ_KERNEL", "dequantize")
    _, quantized = twins(nn.Linear(16, 8, bias=False), "linear", "1x4g4")
    x = torch.randn(4, 16) * torch.tensor([[1e-6], [1.0], [1e6], [0.0]])
    exact = quantized(x)
    quantized.precision = "a8"
    rough = quantized(x)
    assert ((rough - exact)[:3].norm(dim=1) < 0.03 * exact[:3].norm(dim=1)).all()
    assert torch.equal(rough[3], torch.zeros(8))
    # Each row is a whole number of its own steps.
    steps = x[:3] / (x[:3].abs().amax(1, keepdim=True) / 127)
    fake_quantize = steps.round() * (x[:3].abs().amax(1, keepdim=True) / 127)
    quantized.precision = "exact"
    torch.testing.assert_close(quantized(fake_quantize), rough[:3], rtol=1e-4, atol=1e-4)


def test_an_unknown_precision_is_refused():
    _, quantized = twins(nn.Linear(8, 8), "linear", "1x4g4")
    quantized.precision = "fp8"
    with pytest.raises(InputError, match=r"'fp8'.*exact, bf16, a8"):
        quantized(torch.randn(1, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_output_has_the_dtype_of_the_input(dtype, kernel):
    torch.manual_seed(0)
    for dense, kind, x in ((nn.Linear(16, 8), "linear", torch.randn(3, 16)), (nn.Conv2d(4, 8, 3), "conv2d", torch.randn(1, 4, 5, 5))):
        dense, quantized = twins(dense, kind, "1x4g4")
        y = quantized(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), dense(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("text", ["1x4g4", "2x3g5mq", "int8"])
def test_the_state_dict_is_what_the_format_stores(text):
    _, quantized = twins(nn.Linear(13, 7), "linear", text)
    state = quantized.state_dict()
    specs = Format.parse(text).tensor_specs((7, 13))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items() if name != "bias"} == specs
    assert "bias" in state


def test_a_layer_left_as_it_is_has_no_coded_twin():
    with pytest.raises(InputError, match="stays as it is"):
        AQLinear(encode(torch.randn(4, 4), Format.parse("asis")))


def test_densify_puts_torch_modules_of_equal_output():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, groups=1),
        nn.SiLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, groups=4, bias=False)),
        nn.Flatten(),
        nn.Linear(72, 5),
    ).requires_grad_(False)
    quantized = copy.deepcopy(model)
    quantized[0] = twins(quantized[0], "conv2d", "1x4g4")[1]
    quantized[2][0] = twins(quantized[2][0], "conv2d", "1x4g9t")[1]
    quantized[4] = twins(quantized[4], "linear", "int8")[1]
    dense = copy.deepcopy(quantized)
    densify(dense)
    assert [type(module) for module in dense.modules()] == [type(module) for module in model.modules()]
    assert dense.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(dense(x), quantized(x), atol=1e-5, rtol=1e-5)


def test_loading_a_state_dict_takes_effect():
    """The unpacked codes are kept between calls and must not outlive the stored ones."""
    torch.manual_seed(0)
    (_, first), (other_dense, other) = (twins(nn.Linear(12, 6), "linear", "1x4g4") for _ in range(2))
    x = torch.randn(3, 12)
    before = first(x)
    first.load_state_dict(other.state_dict())
    torch.testing.assert_close(first(x), other_dense(x), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, first(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_casting_a_model_leaves_what_is_stored(dtype):
    _, quantized = twins(nn.Linear(12, 6), "linear", "1x4g4q")
    before = {name: tensor.clone() for name, tensor in quantized.stored.items()}
    quantized(torch.randn(1, 12))
    model = nn.Sequential(quantized).to(dtype)
    assert all(tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]) for name, tensor in quantized.stored.items())
    assert quantized.bias.dtype == dtype and model(torch.randn(1, 12, dtype=dtype)).dtype == dtype


def test_the_bias_is_a_copy():
    linear = nn.Linear(4, 4)
    quantized = AQLinear(encode(linear.weight, Format.parse("1x4g4")), linear.bias)
    with torch.no_grad():
        linear.bias.add_(1)
    assert not torch.equal(quantized.bias, linear.bias)


def test_encodings_may_be_shared_by_layers():
    encoding: Encoding = encode(torch.randn(6, 8), Format.parse("1x4g4"))
    first, second = AQLinear(encoding), AQLinear(encoding)
    x = torch.randn(2, 8)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("warm", [True, False])
def test_torch_compile_takes_coded_layers_whole(warm):
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            _, self.linear = twins(nn.Linear(12, 20), "linear", "1x5g4")
            _, self.convolution = twins(nn.Conv2d(4, 6, 3, padding=1), "conv2d", "2x4g4")

        def forward(self, x: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.linear(x).relu(), self.convolution(images).relu()

    model, x, images = Two(), torch.randn(5, 12), torch.randn(2, 4, 7, 7)
    expected = copy.deepcopy(model)(x, images)
    if warm:
        model(x, images)
    torch.compiler.reset()
    for found, wanted in zip(torch.compile(model, fullgraph=True)(x, images), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_models_with_convolutions_of_all_kinds_are_densified():
    """torch has no layout with channels last for all of them: videos' are 3-D."""
    model = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Flatten(2), nn.Conv1d(4, 4, 3), nn.Unflatten(2, (3, 3)), nn.Conv2d(4, 4, 3))
    x = torch.randn(1, 2, 1, 1, 11)
    quantize_(model, {"0": "int8", "2": "int8", "4": "int8"})
    before = model(x)
    densify(model)
    assert [type(model[i]) for i in (0, 2, 4)] == [nn.Conv3d, nn.Conv1d, nn.Conv2d]
    assert model[4].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
