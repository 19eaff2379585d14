"""Which layers a denoiser has, and what each one is for."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError
from .components import Components

# What multiplies its input by a weight.
KINDS: dict[type[nn.Module], str] = {nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d"}
EMBEDDING = "embedding"  # looks rows up, and multiplies nothing
MIN_EMBEDDING = 0.01  # share of the weights of its component, above which a table of embeddings is worth quantizing

# The role of a layer by the end of its path; the first pattern that matches names it. A path that none matches is its own role, without
# indices, so that an unknown architecture still groups alike layers together.
ROLES: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(time_embed\w*|timestep_embed\w*|time_proj\w*|time_text_embed)(\.|$)", "time embedding"),
    (r"(^|\.)(add_embedding|class_embedding|caption_projection|text_embed\w*)\.", "condition embedding"),
    (r"\.(time_emb_proj)$", "time projection"),
    (r"(^|\.)norm\w*\.linear$", "modulation"),
    (r"\.(to_q|q_proj|query|add_q_proj)$", "attention query"),
    (r"\.(to_k|k_proj|key|add_k_proj)$", "attention key"),
    (r"\.(to_v|v_proj|value|add_v_proj)$", "attention value"),
    (r"\.(to_qkv|qkv)$", "attention query, key, value"),
    (r"\.(to_out\.\d+|out_proj|to_add_out)$", "attention output"),
    (r"\.(net\.0\.proj|fc1|linear_1|w1|proj_mlp|conv_inverted)$", "feed-forward in"),
    (r"\.conv_depth$", "depthwise convolution"),
    (r"\.(net\.2|fc2|linear_2|w2|conv_point)$", "feed-forward out"),
    (r"\.conv1$", "residual conv 1"),
    (r"\.conv2$", "residual conv 2"),
    (r"\.(conv_shortcut|skip\w*)$", "skip"),
    (r"downsamplers\.\d+\.conv$", "downsampling"),
    (r"upsamplers\.\d+\.conv$", "upsampling"),
    # SD's attention blocks and Flux' single blocks have projections of their own; only those outside of blocks see the image.
    (r"\.\d+\.proj_in$", "block input"),
    (r"\.\d+\.proj_out$", "block output"),
    (r"(^|\.)(conv_in|pos_embed\.proj|patch_embed\.proj|x_embedder\.\w+|proj_in)$", "input"),
    (r"(^|\.)(conv_out|proj_out\w*|final_layer\.\w+)$", "output"),
)


@dataclass(frozen=True)
class Layer:
    """One eligible weight. `name` is the module's path; its weight is the tensor `name`.weight, of a table of embeddings (rows, length)."""

    name: str
    role: str
    block: str  # "transformer_blocks.0", "mid_block", or "" outside of blocks
    kind: str
    shape: tuple[int, ...]  # (out, in / groups, *taps)
    groups: int = 1

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def n_in(self) -> int:
        """Columns of the flattened weight."""
        return math.prod(self.shape[1:])


def role_of(path: str) -> str:
    for pattern, role in ROLES:
        if re.search(pattern, path):
            return role
    return re.sub(r"\.?\b\d+\b", "", path).strip(".") or path


def block_of(path: str) -> str:
    found = re.match(r"([A-Za-z_]\w*\.\d+)\.", path) or re.match(r"(\w*block\w*)\.", path)
    return found[1] if found else ""


def kind_of(module: nn.Module) -> str | None:
    """What a Linear, Conv or Embedding module is called; None for others."""
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    return next((kind for type_, kind in KINDS.items() if isinstance(module, type_)), None)


def put_channels_last(module: nn.Module) -> None:
    """Lay the weights of 2-D convolutions out so that channels come last, which is faster on CPUs; all else stays, weights of 3-D ones too."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def computed_weights(denoiser: nn.Module) -> list[str]:
    """Paths of Linear and Conv modules that hold no weight of their own: it is made anew in every call, by weight norm and other parametrizations."""
    return [
        path
        for path, module in denoiser.named_modules()
        if kind_of(module) and module._parameters.get("weight") is None and "codes" not in module._buffers
    ]


def _component(denoiser: nn.Module, path: str) -> str:
    return path.partition(".")[0] if isinstance(denoiser, Components) else ""


def _sizes(denoiser: nn.Module) -> dict[str, int]:
    """Numbers of weights of each component."""
    modules = denoiser.items() if isinstance(denoiser, Components) else [("", denoiser)]
    return {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in modules}


def _place(denoiser: nn.Module, path: str) -> tuple[str, str]:
    """Role and block of a layer."""
    if not isinstance(denoiser, Components):
        return role_of(path), block_of(path)
    component = _component(denoiser, path)
    inner = path.removeprefix(f"{component}.")
    block = block_of(inner)
    return f"{component}: {role_of(inner)}", f"{component}.{block}" if block else ""


def find_ties(denoiser: nn.Module) -> dict[str, str]:
    """For every name of a parameter that goes by several the first of its names, where it is another: such tensors are stored once."""
    first: dict[int, str] = {}
    names = ((name, first.setdefault(id(tensor), name)) for name, tensor in denoiser.named_parameters(remove_duplicate=False))
    return {name: holder for name, holder in names if name != holder}


def tied_layers(ties: Mapping[str, str], paths: Collection[str]) -> dict[str, str]:
    """Of `find_ties` those of layers, by path: what has its weight from another layer."""
    pairs = ((alias.rpartition(".weight")[0], holder.rpartition(".weight")[0]) for alias, holder in ties.items())
    return {alias: holder for alias, holder in pairs if holder in paths}


def find_layers(denoiser: nn.Module, exclude: Sequence[str] = ()) -> list[Layer]:
    """All Linear and Conv layers in module order, and large tables of embeddings, less those whose path matches a glob of `exclude`.

    Of several components, those of each have roles and blocks of their own. Modules that share a weight are one layer, by the first one's path.

    Raises InputError for NaN or infinite weights and for a glob that matches nothing.
    """
    layers, unused = [], set(exclude)
    sizes, ties = _sizes(denoiser), find_ties(denoiser)
    names: dict[str, list[str]] = {}
    for alias, holder in ties.items():
        names.setdefault(holder, []).append(alias.removesuffix(".weight"))
    for path, module in denoiser.named_modules():
        kind = kind_of(module)
        if kind is None or module._parameters.get("weight") is None:  # made anew in every call, or there are codes in its place
            continue
        if kind == EMBEDDING and module.weight.numel() <= MIN_EMBEDDING * sizes[_component(denoiser, path)]:
            continue
        if f"{path}.weight" in ties:
            continue
        paths = [path, *names.get(f"{path}.weight", ())]
        matching = {glob for glob in exclude for name in paths if fnmatch.fnmatchcase(name, glob)}
        unused -= matching
        if matching:
            continue
        weight = module.weight
        if not weight.is_meta and not torch.isfinite(weight).all():
            raise InputError(
                f"layer {path}: its weight holds NaN or infinity; repair the model, or leave the layer out with `exclude` {path}"
            )
        layers.append(Layer(path, *_place(denoiser, path), kind, tuple(weight.shape), getattr(module, "groups", 1)))
    if unused:
        raise InputError(f"`exclude` {sorted(unused)[0]}: no Linear or Conv layer has such a path; `sedaq inspect` lists them")
    if not layers:
        raise InputError("the denoiser has no Linear or Conv layer that is not excluded; nothing can be quantized")
    return layers
