"""Quantizes weights by one method, in that method's environment:  python benchmarks/peers_child.py METHOD OPTIONS IN.safetensors OUT.safetensors

IN has a float16 weight (out, in, *taps) for each layer, and in its metadata the layers' kinds and groups; OPTIONS is JSON. OUT gets the weights as the
method gives them back, in float32, and in its metadata the bytes that it stores of each and the seconds it took. A layer that the method cannot quantize
is left out. Nothing of sedaq is imported.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

Weights = dict[str, torch.Tensor]
Quantized = Iterator[tuple[str, torch.Tensor, int]]  # layer, weight, bytes
SDNQ_PARTS = ("weight", "scale", "scale_2", "scale_zero_point", "zero_point", "zero_point_scale", "zero_point_2", "svd_up", "svd_down")
WARM_UP = 4  # layers that are quantized beforehand, for some libraries compile their kernels when they are first used
CONVOLUTIONS: dict[str, Any] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}


def module_of(weight: torch.Tensor, kind: str, groups: int) -> nn.Module | None:
    """What holds the weight in a model; None for tables of embeddings."""
    n_out, n_in, *taps = weight.shape
    if kind == "linear":
        module: Any = nn.Linear(n_in, n_out, bias=False, dtype=weight.dtype)
    elif kind in CONVOLUTIONS:
        module = CONVOLUTIONS[kind](n_in * groups, n_out, taps, groups=groups, bias=False, dtype=weight.dtype)
    else:
        return None
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def modules_of(weights: Weights, layers: Mapping[str, Any], *kinds: str) -> Iterator[tuple[str, Any]]:
    """Modules of these kinds, each in a model of its own."""
    for name, weight in weights.items():
        module = module_of(weight, **layers[name])
        if module is not None and layers[name]["kind"] in kinds:
            yield name, nn.Sequential(module)


def tensor_bytes(*tensors: torch.Tensor | None) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def quanto(weights: Weights, layers: Mapping[str, Any], options: Mapping[str, Any]) -> Quantized:
    library = import_module("optimum.quanto")
    for name, model in modules_of(weights, layers, "linear", "conv2d"):
        library.quantize(model, weights=options["weights"])
        library.freeze(model)
        stored = {key: value for key, value in model.state_dict().items() if not key.endswith(("input_scale", "output_scale"))}
        yield name, model[0].weight.dequantize(), tensor_bytes(*stored.values())


def hqq(weights: Weights, layers: Mapping[str, Any], options: Mapping[str, Any]) -> Quantized:
    library = import_module("hqq.core.quantize")
    for name, model in modules_of(weights, layers, "linear"):
        n_weights, group_size, nbits = model[0].weight.numel(), options["group_size"], options["nbits"]
        if n_weights % group_size or (nbits != 3 and n_weights // group_size * nbits % 8):
            continue  # the library refuses the former, and packs no part of a byte
        config = library.BaseQuantizeConfig(**options)
        layer = library.HQQLinear(model[0], config, compute_dtype=torch.float16, device="cpu")
        yield name, layer.dequantize(), tensor_bytes(layer.W_q, layer.meta["scale"], layer.meta["zero"])


def torchao(weights: Weights, layers: Mapping[str, Any], options: Mapping[str, Any]) -> Quantized:
    library = import_module("torchao.quantization")
    mapping = getattr(library.MappingType, options["mapping"].upper())
    dtype, granularity = getattr(torch, f"int{options['bits']}"), library.PerGroup(options["group_size"])
    for name, model in modules_of(weights, layers, "linear", "conv2d"):
        if model[0].weight.shape[1] % options["group_size"]:
            continue
        config = library.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity, mapping_type=mapping)
        library.quantize_(model, config, filter_fn=lambda module, _: hasattr(module, "weight"))
        found = model[0].weight
        codes = -(-found.qdata.numel() * options["bits"] // 8)  # the library keeps each in a byte
        yield name, found.dequantize(), codes + tensor_bytes(found.scale, found.zero_point if options["mapping"] == "asymmetric" else None)


def bitsandbytes(weights: Weights, layers: Mapping[str, Any], options: Mapping[str, Any]) -> Quantized:
    library = import_module("bitsandbytes.functional")
    for name, model in modules_of(weights, layers, "linear"):
        # As one row: its kernels for CPUs (0.50.2) spoil blocks that are longer than a row.
        codes, state = library.quantize_4bit(model[0].weight.flatten(), compress_statistics=True, quant_type="nf4", **options)
        size = tensor_bytes(codes, state.absmax, state.state2.absmax, state.offset)
        yield name, library.dequantize_4bit(codes, state), size


def gguf(weights: Weights, layers: Mapping[str, Any], options: Mapping[str, Any]) -> Quantized:
    """ggml's own quantizers, read back by gguf; without importance matrices. Rows are joined, as ComfyUI-GGUF joins them."""
    library, constants = import_module("gguf"), import_module("gguf.constants")
    quantize = ctypes.CDLL(str(Path(import_module("libggml").__path__[0]) / "lib64" / "libggml-base.so")).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    kind = constants.GGMLQuantizationType[options["type"]]
    in_block, block_bytes = constants.GGML_QUANT_SIZES[kind]
    for name, weight in weights.items():
        n_blocks, rest = divmod(weight.numel(), in_block)
        if rest:
            continue
        values, codes = weight.float().numpy(), np.empty((n_blocks, block_bytes), np.uint8)
        size = quantize(kind, values.ctypes.data, codes.ctypes.data, 0, n_blocks, in_block, None)
        yield name, torch.from_numpy(library.dequantize(codes, kind)), size


def sdnq(weights: Weights, layers: Mapping[str, Any], options: Mapping[str, Any]) -> Quantized:
    """With scales of 16 bits, as its published models have them, and convolutions."""
    library = import_module("sdnq.quantizer")
    for name, model in modules_of(weights, layers, "linear", *CONVOLUTIONS):
        config = library.SDNQConfig(quant_conv=True, dequantize_fp32=False, **options)
        layer = library.sdnq_post_load_quant(model, quantization_config=config)[0]
        if not hasattr(layer, "sdnq_dequantizer"):
            continue  # too small, or dynamic quantization found no type that is good enough
        stored = {part: getattr(layer, part) for part in SDNQ_PARTS}
        yield name, layer.sdnq_dequantizer(**stored, skip_compile=True), tensor_bytes(*stored.values())


METHODS: dict[str, Callable[..., Quantized]] = {
    function.__name__: function for function in (quanto, torchao, hqq, bitsandbytes, gguf, sdnq)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("options", type=json.loads)
    parser.add_argument("source")
    parser.add_argument("target")
    arguments = parser.parse_args()
    with safe_open(arguments.source, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}
        layers = json.loads(file.metadata()["layers"])
    quantize, smallest = METHODS[arguments.method], sorted(weights, key=lambda name: weights[name].numel())[:WARM_UP]
    with torch.no_grad():
        list(quantize({name: weights[name] for name in smallest}, layers, arguments.options))
        began = time.perf_counter()
        found = list(quantize(weights, layers, arguments.options))
    seconds = time.perf_counter() - began
    tensors = {name: weight.detach().float().reshape(weights[name].shape).contiguous() for name, weight, _ in found}
    sizes = {name: size for name, _, size in found}
    save_file(tensors, arguments.target, {"bytes": json.dumps(sizes), "seconds": str(seconds)})


if __name__ == "__main__":
    main()
