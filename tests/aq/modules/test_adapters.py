"""What peft and diffusers do with a model whose layers hold codes: adapters, device maps, other ways to load, back to dense layers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import ControlNetModel, PipelineQuantizationConfig, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

import sedaq
from sedaq.aq.formats import Format
from sedaq.aq.modules.layers import AQConv2d, AQLinear, quantized_modules
from sedaq.aq.plans.plan import Plan
from sedaq.errors import InputError
from sedaq.models.subject import Subject

from ...builders import prompted_unet

SHARED = {"to_q": "1x4g4@attention-query", "to_k": "1x4g4m@attention-key"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A U-Net with cross attention in full precision, and a plan for it: int8, and codebooks that layers share."""
    torch.manual_seed(0)
    unet = prompted_unet(32, widths=(16, 32), norm_num_groups=8)
    folder = tmp_path_factory.mktemp("unet")
    unet.save_pretrained(folder / "full")
    subject = Subject(unet, sample=lambda **_: torch.zeros(1, 1, 8, 8), name="unet")
    formats = {layer.name: Format.parse(SHARED.get(layer.name.rpartition(".")[2], "int8")) for layer in subject.layers}
    Plan.of(subject, formats).save(folder / "plan.json")
    quantized(folder).save_pretrained(folder / "quantized")
    return folder


def quantized(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / "full", quantization_config=sedaq.SedaqConfig(folder / "plan.json"))


def loaded(folder: Path, **how) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / "quantized", **how)


def answer(model: nn.Module) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return model(torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([1, 500]), torch.randn(2, 7, 32, generator=rng)).sample


# -- loading -----------------------------------------------------------------------------------------------------------------------------


def test_full_precision_weights_are_quantized_by_a_plan(folder):
    model = quantized(folder)
    plan = Plan.load(folder / "plan.json")
    assert {name: module.format for name, module in quantized_modules(model).items()} == plan.formats
    assert isinstance(model.conv_in, AQConv2d) and not model.conv_in.bias.requires_grad
    full = UNet2DConditionModel.from_pretrained(folder / "full")
    with torch.inference_mode():
        difference = (answer(model) - answer(full)).norm() / answer(full).norm()
        assert 0 < difference < 0.2
        assert torch.equal(answer(loaded(folder)), answer(model)), "saved and loaded again"


def test_weights_in_full_precision_need_a_plan(folder):
    with pytest.raises(InputError, match="needs the `plan`"):
        sedaq.SedaqConfig()
    with pytest.raises(InputError, match="give SedaqConfig a `plan`"):
        UNet2DConditionModel.from_pretrained(folder / "full", quantization_config=sedaq.SedaqConfig(layers={"conv_in": "int8"}))


def test_a_pipelines_config_maps_components(folder):
    config = sedaq.SedaqConfig(folder / "plan.json")
    mapping = PipelineQuantizationConfig(quant_mapping={"unet": config})
    assert mapping._resolve_quant_config(is_diffusers=True, module_name="unet") is config


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
@torch.inference_mode()
def test_device_maps(folder, device_map):
    assert torch.equal(answer(loaded(folder, device_map=device_map)), answer(loaded(folder)))


def test_a_device_map_to_disk_is_refused_in_a_line(folder, tmp_path):
    parts = dict.fromkeys([name for name, _ in loaded(folder).named_children()], "cpu") | {"mid_block": "disk"}
    with pytest.raises(InputError, match="enable_group_offload"):
        loaded(folder, device_map=parts, offload_folder=str(tmp_path))


def test_a_pickled_model_runs_in_another_process(folder, tmp_path):
    model = loaded(folder)
    for module in quantized_modules(model).values():
        module.cost_model = "of a process that is gone"
    torch.save(model, tmp_path / "model")
    script = (
        "import sys, torch, sedaq\n"
        "m = torch.load(sys.argv[1], weights_only=False)\n"
        "g = torch.Generator().manual_seed(0)\n"
        "x, t, c = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([1, 500]), torch.randn(2, 7, 32, generator=g)\n"
        "torch.save(m(x, t, c).sample.detach(), sys.argv[2])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model"), str(tmp_path / "answer")]
    done = subprocess.run(command, env={**os.environ, "PYTHONSAFEPATH": "1"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(tmp_path / "answer", weights_only=True), answer(model), atol=1e-4, rtol=1e-4)


# -- back to dense layers ----------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_dequantize(folder, tmp_path):
    model = loaded(folder)
    before = answer(model)
    dense = model.dequantize()
    assert quantized_modules(dense) == {} and "quantization_config" not in dense.config
    torch.testing.assert_close(answer(dense), before, atol=1e-5, rtol=1e-5)
    dense.save_pretrained(tmp_path)
    torch.testing.assert_close(answer(UNet2DConditionModel.from_pretrained(tmp_path)), before, atol=1e-5, rtol=1e-5)


def test_projections_are_not_fused(folder):
    with pytest.raises(InputError, match="cannot be fused"):
        loaded(folder).fuse_qkv_projections()


# -- adapters ----------------------------------------------------------------------------------------------------------------------------


def trained(folder: Path) -> UNet2DConditionModel:
    """With an adapter that was trained beside the codes."""
    model = loaded(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        base = answer(model)
    model.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v", "conv1", "proj_in"], init_lora_weights="gaussian"), "one"
    )
    assert torch.equal(answer(model), base), "an adapter begins at zero"
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    losses = []
    for _ in range(15):
        loss = (answer(model) - base - 0.3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    return model


def test_adapters_are_trained_saved_loaded_combined_and_taken_off(folder, tmp_path):
    model = trained(folder)
    codes = {name: module.codes for name, module in quantized_modules(loaded(folder)).items()}
    assert all(torch.equal(module.codes, codes[name.replace(".base_layer", "")]) for name, module in quantized_modules(model).items())
    safetensors.torch.save_file(get_peft_model_state_dict(model, adapter_name="one"), tmp_path / "lora.safetensors")
    other = loaded(folder)
    with torch.inference_mode():
        base = answer(other)
        for name in ("one", "two"):
            other.load_lora_adapter(safetensors.torch.load_file(tmp_path / "lora.safetensors"), adapter_name=name, prefix=None)
        other.set_adapters(["one"])
        torch.testing.assert_close(answer(other), answer(model), atol=1e-5, rtol=1e-5)
        other.set_adapters(["one", "two"], [0.5, 0.5])
        torch.testing.assert_close(answer(other), answer(model), atol=1e-5, rtol=1e-5)
        other.disable_adapters()
        assert torch.equal(answer(other), base)
        other.enable_adapters()
        with pytest.raises(InputError, match="cannot be written, for its codes do not follow"):
            other.fuse_lora()
        other.delete_adapters(["one", "two"])
        assert torch.equal(answer(other), base)


def test_layers_beside_adapters_are_plain(folder):
    model = loaded(folder)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1"]))
    linear, convolution = model.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q, model.down_blocks[0].resnets[0].conv1
    assert isinstance(linear.base_layer, AQLinear) and type(linear.lora_A["default"]) is nn.Linear
    assert isinstance(convolution.base_layer, AQConv2d) and type(convolution.lora_A["default"]) is nn.Conv2d


def test_a_controlnet_is_made_of_plain_layers(folder):
    """It copies weights by their names, and codes have others."""
    model = loaded(folder)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"weight\""):
        ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(8, 8))
    model.dequantize()
    made = ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(8, 8))
    assert torch.equal(made.conv_in.weight, model.conv_in.weight)


def test_gradient_checkpointing_changes_no_gradient(folder):
    model = loaded(folder)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_v"], init_lora_weights="gaussian"))
    model.train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        answer(model).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.enable_gradient_checkpointing()
    torch.testing.assert_close(*gradients)
    assert any(g.abs().max() > 0 for g in gradients[0].values())
