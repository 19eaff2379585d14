"""What diffusers loads from a folder that sedaq wrote: kernels as they were chosen, what products read, and damage refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sedaq.aq.export.apply import PLAN_FILE
from sedaq.aq.formats import AS_IS
from sedaq.aq.modules.layers import quantized_modules
from sedaq.aq.plans.plan import Plan
from sedaq.errors import InputError
from sedaq.kernels import cost_model, dispatch, native
from sedaq.kernels.dispatch import KERNELS
from sedaq.models.folders import WEIGHTS_FILE


@pytest.mark.parametrize("costs", ["this machine's", "the folder's", "of other kernels"])
def test_kernels_are_chosen_by_the_costs_in_the_folder(costs, quantized, tmp_path, monkeypatch):
    """Laws by which one kernel or the other is free."""
    from diffusers import DiTTransformer2DModel

    def of(cheap: str) -> dict:
        return {
            name: {size: [float(name != cheap)] * 6 for size in cost_model.SIZES}
            for name in (*cost_model.candidates(), cost_model.ROUNDING)
        }

    expected = "dequantize"
    monkeypatch.delenv("SEDAQ_KERNEL", raising=False)
    monkeypatch.setattr(cost_model, "factors", lambda: of(expected))
    folder = tmp_path / "changed"
    shutil.copytree(quantized, folder)
    config = json.loads((folder / "config.json").read_text())
    stored = config["quantization_config"].pop("kernel_costs")
    assert set(stored) == {"threads", "law"} and set(stored["law"]) == {*cost_model.candidates(), cost_model.ROUNDING}
    if costs == "the folder's":
        expected = cost_model.candidates()[-1]
    if costs != "this machine's":
        stored["law"] = of(expected) | ({"another": {size: [0.0] * 6 for size in cost_model.SIZES}} if costs == "of other kernels" else {})
        config["quantization_config"]["kernel_costs"] = stored
    (folder / "config.json").write_text(json.dumps(config))
    model = DiTTransformer2DModel.from_pretrained(folder)
    name = next(iter(config["quantization_config"]["layers"]))
    matrix = model.get_submodule(name).matrix()
    assert dispatch.choose(torch.ones(1), 64, matrix, KERNELS[expected].precision) == expected
    if costs == "the folder's":
        model.save_pretrained(tmp_path / "again")
        again = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
        assert again["kernel_costs"] == stored


@pytest.mark.skipif(native.library() is None, reason="the C++ kernels were not built")
def test_what_products_read_is_made_at_loading(quantized, monkeypatch):
    from diffusers import DiTTransformer2DModel

    monkeypatch.delenv("SEDAQ_KERNEL", raising=False)
    model = DiTTransformer2DModel.from_pretrained(quantized)
    made = [native._prepared[layer.matrix().codes] for layer in quantized_modules(model).values()]
    model(torch.randn(3, 1, 8, 8), torch.tensor([5, 50, 95]), class_labels=torch.tensor([0, 1, 3]))
    assert made and all(
        native._prepared[layer.matrix().codes] is known for layer, known in zip(quantized_modules(model).values(), made, strict=True)
    )


@pytest.mark.parametrize("damage", ["tensor", "layer", "costs", "schema"])
def test_a_damaged_folder_is_refused(damage, quantized):
    from diffusers import DiTTransformer2DModel

    config = json.loads((quantized / "config.json").read_text())
    if damage == "tensor":
        stored = safetensors.torch.load_file(quantized / WEIGHTS_FILE)
        lost = next(name for name in stored if name.endswith(".codebooks"))
        del stored[lost]
        safetensors.torch.save_file(stored, quantized / WEIGHTS_FILE, {"format": "pt"})
    elif damage == "layer":
        lost = "transformer_blocks.7.attn1.to_q"
        config["quantization_config"]["layers"][lost] = "1x4g4"
    elif damage == "costs":
        lost = "field 'kernel_costs"
        config["quantization_config"]["kernel_costs"] = {"law": {"dequantize": {"few": [1.0]}}}
    else:
        lost = "field 'schema' is 99"
        config["quantization_config"]["schema"] = 99
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=lost):
        DiTTransformer2DModel.from_pretrained(quantized)
    shutil.rmtree(quantized)


@torch.inference_mode()
def test_a_folder_that_was_written_before_still_loads():
    """benchmarks/cifar.py wrote it, on a GPU. What it answers was noted when it was kept; full precision's first numbers are .0336, .0311, .0601, .0406."""
    from diffusers import UNet2DModel

    folder = Path(__file__).parents[3] / "benchmarks" / "results" / "cifar" / "searched_tuned"
    model = UNet2DModel.from_pretrained(folder)
    plan = Plan.load(folder / PLAN_FILE)
    assert set(quantized_modules(model)) == {name for name, format in plan.formats.items() if format != AS_IS}
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answer = model(x, 999, class_labels=torch.tensor([3])).sample
    assert answer.flatten()[:4].tolist() == pytest.approx([0.0345, 0.0318, 0.0592, 0.0394], abs=2e-4)
