"""How diffusers loads a folder that sedaq wrote: `import sedaq`, then `from_pretrained`.

diffusers 0.42 offers no registration to third parties, so the two tables that it looks quantizers up in are written to. transformers does offer
one, and takes seconds to import: text_encoders.py registers when something else imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import wrapt
from accelerate.utils import set_module_tensor_to_device
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from safetensors import SafetensorError
from torch import nn

from ...errors import InputError
from ...kernels import cost_model
from ...models import pretrained
from ...models.folders import WEIGHTS_FILE, read_config
from ...models.hooks import add_hooks
from ...models.layers import kind_of
from ...storage import SCHEMA
from ..activations.quantizer import ACTIVATION, Activation, ActivationQuantizer, Clock, activation_quantizer
from ..encoding import Encoding
from ..formats import AS_IS, BOOK_TENSORS, Format
from ..plans.plan import Plan, book_holders
from .layers import put_dense_layers, put_tied, quantized_module, quantized_modules, set_module
from .quantize import quantize_


class _Method(StrEnum):
    """diffusers asks its quantization method for `.value`."""

    SEDAQ = "sedaq"


METHOD = _Method.SEDAQ.value


def _check_stored(content: dict[str, Any]) -> None:
    """Raise InputError for fields of another type, and for formats that are none."""
    from ...records.check import complaint  # here, for pydantic takes a tenth of a second to import

    wrong = complaint("quantization_config", content)
    if wrong is not None:
        raise InputError(f"quantization_config: {wrong}; apply the plan again")
    for text in content["layers"].values():
        Format.parse(text)


class SedaqConfig(QuantizationConfigMixin):
    """config.json's quantization_config: the format of every layer that holds codes, how its inputs are rounded (with the edges between
    buckets of timesteps), and what kernels cost where it was written.

    A folder that sedaq wrote has one. With a `plan` it is an argument of `from_pretrained` for full-precision weights, which are then encoded at once,
    without calibration: the folder that `Run.apply` writes of the same plan is better.

    Args:
        plan: a plan or its file.
        effort: of encodings that are made now.

    Raises:
        InputError: for another schema, or a plan that cannot be read or rounds inputs.

    Example:
        >>> config = SedaqConfig(plan="plan.json")  # doctest: +SKIP
        >>> DiTTransformer2DModel.from_pretrained("dit", quantization_config=config)  # doctest: +SKIP
    """

    def __init__(
        self,
        plan: Plan | str | Path | None = None,
        *,
        effort: str = "fast",
        layers: dict[str, str] | None = None,
        kernel_costs: dict[str, Any] | None = None,
        activations: dict[str, dict[str, Any]] | None = None,
        tied: dict[str, str] | None = None,
        timestep_edges: Sequence[float] = (),
        schema: int = SCHEMA,
        fingerprint: str = "",
        quant_method: str = _Method.SEDAQ,
    ) -> None:
        if schema != SCHEMA:
            raise InputError(
                f"quantization_config: field 'schema' is {schema!r} where {SCHEMA} is expected; install the version of sedaq that wrote the folder"
            )
        self.quant_method = _Method(quant_method)  # type: ignore[assignment]
        self.plan, self.effort = Plan.load(plan) if isinstance(plan, str | Path) else plan, effort
        if self.plan is not None:
            if layers is not None or self.plan.activations:
                raise InputError("`plan`: give a plan that rounds no inputs, and no `layers` beside it; `Run.apply` applies others")
            layers = {path: str(format) for path, format in self.plan.formats.items() if format != AS_IS}
        if layers is None:
            raise InputError("a SedaqConfig needs the `plan` by which to quantize")
        stored = {
            "kernel_costs": kernel_costs,
            "activations": activations or {},
            "tied": tied or {},
            "timestep_edges": list(timestep_edges),
        }
        _check_stored({"schema": schema, "layers": layers, "fingerprint": fingerprint, **stored})
        self.schema, self.layers, self.kernel_costs, self.fingerprint = schema, dict(layers), kernel_costs, fingerprint
        self.activations = {path: Activation(**choice) for path, choice in (activations or {}).items()}
        self.timestep_edges = tuple(timestep_edges)
        self.tied = dict(tied or {})  # paths of modules that have their weight from a layer, and that layer's

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds as quantization_config."""
        return {
            "quant_method": self.quant_method.value,
            "schema": self.schema,
            "fingerprint": self.fingerprint,
            "layers": self.layers,
            "kernel_costs": self.kernel_costs,
            "activations": {path: vars(choice) for path, choice in self.activations.items()},
            "timestep_edges": list(self.timestep_edges),
            **({"tied": self.tied} if self.tied else {}),
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """diffusers prints a config by it, and does print it in `from_pretrained`."""
        return self.to_dict()


class SedaqQuantizer(DiffusersQuantizer):
    """Replaces the layers named in the config by quantized ones and fills their buffers with the stored dtypes."""

    quantization_config: SedaqConfig

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        if self.pre_quantized:
            self.put_layers(model)
        elif self.quantization_config.plan is None:
            raise InputError("quantization_config: these are full-precision weights; give SedaqConfig a `plan` to quantize them by")

    def put_layers(self, model: nn.Module) -> None:
        """Quantized layers without values in the place of those that the config names."""
        holders, originals = self._holders, {}
        for path, text in self.quantization_config.layers.items():
            try:
                module = originals[path] = model.get_submodule(path)
            except AttributeError as error:
                raise InputError(
                    f"quantization_config names layer {path!r}, which {type(model).__name__} does not have; the folder is damaged"
                ) from error
            format = Format.parse(text)
            shape = tuple(module.weight.shape)  # type: ignore[union-attr, arg-type]
            tensors = {name: torch.empty(size, dtype=dtype, device="meta") for name, (dtype, size) in format.tensor_specs(shape).items()}
            layer = quantized_module(module, kind_of(module) or "", Encoding(format, shape, tensors, 0.0))
            if holders.get(path, path) != path:
                for name in BOOK_TENSORS:  # shared after loading; until then there is nothing that could be moved to a device
                    layer._buffers.pop(name, None)
            if path in self.quantization_config.activations:
                layer.activation = self._rounding(module, self.quantization_config.activations[path])
            set_module(model, path, layer)
        for alias, holder in self.quantization_config.tied.items():
            same = model.get_submodule(alias) is originals[holder]
            put_tied(model, alias, quantized_modules(model)[holder], same=same)
            if not same:
                quantized_modules(model)[alias]._buffers.clear()

    @staticmethod
    def _rounding(module: nn.Module, choice: Activation) -> ActivationQuantizer:
        specs = choice.tensor_specs().items()
        return activation_quantizer(
            module, choice, {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in specs}
        )

    @property
    def _holders(self) -> dict[str, str]:
        return book_holders({path: Format.parse(text) for path, text in self.quantization_config.layers.items()})

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        plan = self.quantization_config.plan
        if not self.pre_quantized and plan is not None:
            quantize_(model, plan, effort=self.quantization_config.effort)
        self.finish(model)
        if hasattr(model, "fuse_qkv_projections"):
            model.fuse_qkv_projections = refuse_fusion  # type: ignore[assignment]
        return model

    def finish(self, model: nn.Module) -> None:
        """What is left once all tensors are there: shared codebooks, kernels, the clock of rounded inputs."""
        stored = model.state_dict().keys()  # borrowed codebooks are not in it
        for name, buffer in model.named_buffers():
            if buffer.is_meta and name in stored:
                raise InputError(
                    f"the folder's weights lack tensor {name!r}; the file is damaged or not of this config, apply the plan again"
                )
        for path, holder in self._holders.items():
            if path != holder:
                held = dict(model.get_submodule(holder).named_buffers(recurse=False))
                borrower: Any = model.get_submodule(path)
                borrower.borrow({name: held[name] for name in BOOK_TENSORS if name in held})
        for alias, holder in self.quantization_config.tied.items():
            layer: Any = model.get_submodule(alias)
            if not layer.stored:
                layer.borrow(quantized_modules(model)[holder].stored)
        stored_costs = self.quantization_config.kernel_costs
        adopted = cost_model.adopt(stored_costs) if stored_costs else ""
        for layer in quantized_modules(model).values():
            layer.cost_model = adopted
            layer.prepare()
        static = [
            layer.activation for layer in quantized_modules(model).values() if layer.activation and layer.activation.activation.is_static
        ]
        if static:
            clock = Clock(model, self.quantization_config.timestep_edges)
            add_hooks(model, before={"": clock})
            for rounding in static:
                rounding.clock = clock

    def _dequantize(self, model: nn.Module) -> nn.Module:
        put_dense_layers(model)
        config = {name: value for name, value in model.config.items() if name != "quantization_config"}  # type: ignore[union-attr, operator]
        model._internal_dict = FrozenDict(config)
        model.__dict__.pop("fuse_qkv_projections", None)
        return model

    def update_device_map(self, device_map: Any) -> Any:
        """Raises InputError for layers that would have to be read from disk in every step: codes are buffers, which accelerate does not."""
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise InputError(
                "`device_map`: quantized layers are not loaded to disk; load to cpu, then call enable_group_offload with offload_to_disk_path"
            )
        return device_map

    def check_if_quantized_param(self, model: nn.Module, param_value: Any, param_name: str, *_: Any, **__: Any) -> bool:
        """Whether a tensor of the file belongs to a quantized layer; diffusers loads all others itself."""
        path = param_name.rpartition(".")[0].removesuffix(f".{ACTIVATION}")
        return self.pre_quantized and path in self.quantization_config.layers and not param_name.endswith(".bias")

    def create_quantized_param(
        self, model: nn.Module, param_value: Any, param_name: str, target_device: Any, state_dict: Any, *_: Any, **__: Any
    ) -> None:  # type: ignore[override]
        """Put a tensor of the file into its layer."""
        # diffusers has already cast param_value to torch_dtype; the stored tensor is what counts.
        path, _dot, name = param_name.rpartition(".")
        module = model.get_submodule(path)
        module.register_buffer(name, state_dict[param_name].to(target_device))

    def check_quantized_param_shape(self, param_name: str, current: torch.Tensor, loaded: torch.Tensor) -> bool:  # type: ignore[override]
        """Called where shapes differ, which none may: raises InputError."""
        raise InputError(
            f"tensor {param_name!r} has shape {tuple(loaded.shape)}, its format takes {tuple(current.shape)}; the folder is damaged"
        )

    @property
    def is_serializable(self) -> bool:
        """True: save_pretrained writes codes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: adapters beside the codes are; codes are tuned by sedaq alone."""
        return True


def refuse_fusion() -> None:
    """What `fuse_qkv_projections` of a quantized model does: raises InputError."""
    raise InputError("projections with codes cannot be fused; fuse those of the full-precision model, then quantize it")


def stored_config(config: Mapping[str, Any], where: str) -> SedaqConfig:
    """What a model's config says of its quantization. Raises InputError, which names `where`, for one that sedaq did not write."""
    try:
        return SedaqConfig(**config["quantization_config"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{where}: holds no quantization_config of sedaq; the file is damaged, apply the plan again") from error


def restore(module: nn.Module, folder: Path) -> None:
    """Put the layers of a folder that sedaq wrote into a module that is no diffusers model, with all else that the file holds.

    Raises:
        InputError: a folder that is damaged, or of another module.
    """
    config = stored_config(read_config(folder / "config.json"), str(folder / "config.json"))
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS_FILE}: cannot be read; apply the plan again") from error
    put_stored(module, config, tensors, str(folder), device=next(module.parameters()).device)


def put_stored(module: nn.Module, config: SedaqConfig, tensors: Mapping[str, torch.Tensor], where: str, *, device: Any) -> None:
    """Put quantized layers into a module, and every tensor of a file into its place; parameters without values get them.

    Raises:
        InputError: which names `where`, for tensors of another module.
    """
    quantizer = SedaqQuantizer(config, pre_quantized=True)
    quantizer.put_layers(module)
    names = {name for tensors_of in (module.named_parameters, module.named_buffers) for name, _ in tensors_of()}  # one of several
    expected = {name: tensor for name, tensor in module.state_dict().items() if name in names}
    if expected.keys() != tensors.keys() or any(tensors[name].shape != tensor.shape for name, tensor in expected.items()):
        raise InputError(f"{where}: its tensors are not those of this module; pass the subject that it was made from")
    for name, tensor in tensors.items():
        if quantizer.check_if_quantized_param(module, tensor, name):
            quantizer.create_quantized_param(module, tensor, name, device, tensors)
        else:
            set_module_tensor_to_device(module, name, device, value=tensor, dtype=expected[name].dtype)
    quantizer.finish(module)


def register() -> None:
    """Make diffusers and transformers know quant_method "sedaq". Calling it again changes nothing.

    Test tools import the root folder a second time, under its own name; only the package by the name `sedaq` registers.
    """
    if __name__.partition(".")[0] != "sedaq":
        return
    pretrained.restore = restore
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        wrapt.register_post_import_hook(_register_text_encoders, "transformers.quantizers.auto")
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = SedaqConfig
    auto.AUTO_QUANTIZER_MAPPING[METHOD] = SedaqQuantizer


def _register_text_encoders(_: Any) -> None:
    from . import text_encoders  # noqa: F401  which registers
