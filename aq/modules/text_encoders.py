"""How transformers loads a text encoder that sedaq quantized. Imported when transformers' own table of quantizers is."""

from __future__ import annotations

from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .integration import METHOD, SedaqConfig, SedaqQuantizer


class TextEncoderConfig(SedaqConfig, QuantizationConfigMixin):  # type: ignore[misc]
    """SedaqConfig, as transformers wants it."""


class TextEncoderQuantizer(HfQuantizer):
    """Does for a model of transformers what SedaqQuantizer does for one of diffusers."""

    quantization_config: TextEncoderConfig

    def __init__(self, quantization_config: TextEncoderConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.inner = SedaqQuantizer(quantization_config, pre_quantized=self.pre_quantized)

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        self.inner._process_model_before_weight_loading(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        return self.inner._process_model_after_weight_loading(model)

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """None, so that it stays as it is stored, for a tensor of a quantized layer."""
        name = converter.target_patterns[0]
        stored = any(name.startswith(f"{path}.") for path in self.quantization_config.layers) and not name.endswith(".bias")
        return None if stored else super().get_new_dtype(converter, param, dtype)

    def is_serializable(self) -> bool:
        """True: save_pretrained writes codes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: adapters beside the codes are."""
        return True


# At the end of the module and not in a function: whoever imports this one first imports transformers' table, whose hook imports it again.
if __name__.partition(".")[0] == "sedaq":
    register_quantization_config(METHOD)(TextEncoderConfig)
    register_quantizer(METHOD)(TextEncoderQuantizer)
