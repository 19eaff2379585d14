"""What counts in a diffusers folder: which weights are loaded, which files belong to it, and what is refused before any work."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, UNet2DConditionModel

from sedaq.errors import InputError
from sedaq.models.folders import architecture, files_of, loaded_weights, stored_dtypes
from sedaq.models.loading import load
from sedaq.models.sampling import SamplingConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# -- which weights -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, chosen",
    [
        ([WEIGHTS], ("", "safetensors")),
        ([WEIGHTS, "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"], ("", "safetensors")),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"], ("fp16", "safetensors")),
        (["diffusion_pytorch_model.bin"], ("", "bin")),
        (["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model.safetensors.index.json"], ("", "safetensors")),
        (["model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json"], ("fp16", "safetensors")),
        (["config.json", "x.safetensors"], None),
    ],
)
def test_which_weights_are_loaded(names: list[str], chosen: tuple[str, str] | None, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert loaded_weights(tmp_path) == chosen


def test_several_variants_and_none_without_a_name(tmp_path: Path) -> None:
    for variant in ("fp16", "ema"):
        (tmp_path / f"diffusion_pytorch_model.{variant}.safetensors").touch()
    with pytest.raises(InputError, match="variants ema, fp16 and none without a name"):
        loaded_weights(tmp_path)


def test_the_only_variant_is_loaded(make_denoiser: Callable[..., Path], unconditional_pipeline: Path) -> None:
    for folder, weights in (
        (f := make_denoiser("unet", dtype=torch.float16), f),
        (unconditional_pipeline, unconditional_pipeline / "unet"),
    ):
        before = load(folder).fingerprint
        (weights / WEIGHTS).rename(weights / "diffusion_pytorch_model.fp16.safetensors")
        assert load(folder).fingerprint == before
    assert set(stored_dtypes(f).values()) == {torch.float16}


def test_bin_files_are_counted_as_they_are_stored(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("unet", dtype=torch.float16)
    before = load(folder)
    torch.save(safetensors.torch.load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    subject = load(folder)
    assert subject.fingerprint == before.fingerprint and subject.tensor_specs == before.tensor_specs


def test_files_that_belong_to_a_pipeline(class_pipeline: Path) -> None:
    wanted = {str(path.relative_to(class_pipeline)) for path in class_pipeline.rglob("*") if path.is_file()}
    (class_pipeline / "README.md").write_text("a card")
    strays = (
        "x.safetensors",
        ".cache/a",
        ".git/config",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "old/a.json",
    )
    for name in strays:
        (class_pipeline / name).parent.mkdir(exist_ok=True)
        (class_pipeline / name).touch()
    found = {str(path.relative_to(class_pipeline)) for path in files_of(class_pipeline)}
    assert found == wanted | {"README.md"}
    assert {str(path.relative_to(class_pipeline)) for path in files_of(class_pipeline, "vae")} == {
        n for n in found if not n.startswith("vae/")
    }


# -- what is refused ---------------------------------------------------------------------------------------------------------------------


def test_missing_tensors_are_named(make_denoiser: Callable[..., Path], unconditional_pipeline: Path) -> None:
    for folder, weights in ((f := make_denoiser("unet"), f), (unconditional_pipeline, unconditional_pipeline / "unet")):
        tensors = safetensors.torch.load_file(weights / WEIGHTS)
        del tensors["conv_in.bias"]
        safetensors.torch.save_file(tensors, weights / WEIGHTS)
        assert "lack the tensor conv_in.bias; the folder is incomplete" in refusal(folder)


def test_nan_outside_of_weights(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("unet")
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    tensors["conv_in.bias"][3] = float("nan")
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    assert "its tensor conv_in.bias holds NaN or infinity" in refusal(folder)


def test_components_that_are_null(unconditional_pipeline: Path) -> None:
    edit(unconditional_pipeline / "model_index.json", unet=[None, None])
    assert "has no component named transformer, unet" in refusal(unconditional_pipeline)


def test_a_vae_is_no_denoiser(tmp_path: Path) -> None:
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    assert "AutoencoderKL is no denoiser" in refusal(tmp_path)


def test_bare_denoisers_that_need_a_pipeline(tmp_path: Path) -> None:
    flux = FluxTransformer2DModel(num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=8)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    for name, model in (("flux", flux), ("unet", unet)):
        model.save_pretrained(tmp_path / name)
        FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / name)
        assert "is also asked with encoder_hidden_states, which a pipeline makes; pass the pipeline's folder" in refusal(tmp_path / name)


def test_images_of_unknown_size(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("unet")
    edit(folder / "config.json", sample_size=None)
    assert "field 'sample_size' is missing or null" in refusal(folder)
    edit(folder / "config.json", sample_size=8)
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(folder)
    assert "shifts timesteps by the size of images" in refusal(folder)


def test_a_single_file(make_denoiser: Callable[..., Path]) -> None:
    assert "is a file; pass the folder" in refusal(make_denoiser("unet") / WEIGHTS)


def test_a_second_denoiser_is_mentioned(unconditional_pipeline: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(unconditional_pipeline / "unet", unconditional_pipeline / "unet_2")
    index = json.loads((unconditional_pipeline / "model_index.json").read_text())
    (unconditional_pipeline / "model_index.json").write_text(json.dumps({**index, "unet_2": index["unet"]}))
    with caplog.at_level(logging.WARNING, logger="sedaq"):
        subject = load(unconditional_pipeline)
    assert "only its unet is quantized; unet_2 stays as it is" in caplog.text
    assert subject.sample(SamplingConfig(steps=1), seed=0, n_images=1).shape == (1, 1, 8, 8)


def test_a_package_that_is_missing_is_no_damage(unconditional_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object, **__: object) -> None:
        raise ImportError("CLIPTextModel requires the transformers library\nbut it was not found")

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", without)
    assert "needs a package that is not installed (CLIPTextModel requires the transformers library)" in refusal(unconditional_pipeline)


# -- configs alone -----------------------------------------------------------------------------------------------------------------------

# Linear and convolutional layers, and millions of their weights, as diffusers 0.42 builds published architectures.
COUNTS = {
    "DiT-XL/2": (255, 717.0),
    "PixArt-α 512": (287, 610.2),
    "Hunyuan-DiT": (472, 1514.3),
    "SD 1.5": (282, 859.1),
    "SDXL": (794, 2565.9),
    "SD3-medium": (341, 2027.2),
    "FLUX.1-dev": (504, 11898.3),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_architectures_from_their_configs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    configs = importlib.import_module("architectures").CONFIGS
    (tmp_path / "config.json").write_text(json.dumps(configs[name]))
    subject = architecture(tmp_path)
    millions = sum(layer.n_weights for layer in subject.layers) / 1e6
    assert (len(subject.layers), round(millions, 1)) == COUNTS[name]
    assert all(tensor.is_meta for tensor in subject.denoiser.state_dict().values())
    with pytest.raises(InputError, match="has no weights, so that nothing can be sampled"):
        subject.sample(seed=0, n_images=1)


def test_configs_of_which_diffusers_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"_class_name": "DiTTransformer2DModel", "sample_size": "large"}')
    with pytest.raises(InputError, match="diffusers cannot build it"):
        architecture(path)
