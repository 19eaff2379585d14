"""What counts in a diffusers folder: which weights are loaded, which files belong to it, and what is refused before any work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from sedaq.errors import InputError
from sedaq.models.folders import copies_of, files_of, loaded_weights, stored_dtypes
from sedaq.models.loading import SHIPPED_FOLDER, load
from sedaq.models.sampling import SamplingConfig

from ..builders import prompted_unet, save_denoiser, vae

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


@pytest.mark.parametrize("components", [("unet",), ("unet", "vae", "text_encoder")])
def test_a_pipeline_of_variants_becomes_one_without(components: tuple[str, ...], tmp_path: Path) -> None:
    """All of it, or of some components alone: the copy is loaded without being asked for a variant."""
    folder = Path(shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd"))
    whole = load(folder).sample(SamplingConfig(steps=2), seed=0, n_images=2)
    for name in components[1:] or ("vae",):
        for path in (folder / name).glob("*.safetensors"):
            path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert torch.equal(load(folder).sample(SamplingConfig(steps=2), seed=0, n_images=2), whole)
    out = tmp_path / "copy"
    for name, path, content in copies_of(folder):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(path.read_bytes() if content is None else content)
    assert not list(out.rglob("*fp16*"))
    assert torch.equal(load(out).sample(SamplingConfig(steps=2), seed=0, n_images=2), whole)


def test_each_component_has_a_variant_of_its_own(tmp_path: Path) -> None:
    """The one that is counted, hashed and copied is the one that is loaded, while diffusers knows one variant for a whole pipeline."""
    folder = Path(shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd"))
    sampling = SamplingConfig(steps=2)
    whole = load(folder)
    images = whole.sample(sampling, seed=0, n_images=2)
    zeros = {name: torch.zeros_like(tensor).half() for name, tensor in safetensors.torch.load_file(folder / "unet" / WEIGHTS).items()}
    safetensors.torch.save_file(zeros, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "vae" / WEIGHTS).rename(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "vae" / "LICENSE").touch()  # which diffusers stumbles over when it looks for a variant
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.ema.safetensors")
    for subject in (load(folder), load(folder, mapped=True)):
        assert subject.fingerprint == whole.fingerprint and subject.tensor_specs == whole.tensor_specs
    assert torch.equal(load(folder).sample(sampling, seed=0, n_images=2), images)
    names = {name for name, _, _ in copies_of(folder)}
    assert {f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"} <= names and not any("fp16" in name for name in names)


def test_indexes_of_shards_lose_the_variant_with_their_shards(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    shards = {f"t{n}": f"diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)}
    for shard in shards.values():
        (tmp_path / "unet" / shard).touch()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"]}))
    found = {name: content for name, _, content in copies_of(tmp_path)}
    plain = {f"t{n}": f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    assert {f"unet/{shard}" for shard in plain.values()} <= found.keys()
    index = found["unet/diffusion_pytorch_model.safetensors.index.json"]
    assert index is not None and json.loads(index)["weight_map"] == plain


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
    assert "its unet is null in model_index.json, so there is nothing to quantize" in refusal(unconditional_pipeline)


def test_a_vae_is_no_denoiser(tmp_path: Path) -> None:
    save_denoiser(vae(), tmp_path, FlowMatchEulerDiscreteScheduler())
    assert "AutoencoderKL is no denoiser" in refusal(tmp_path)


def test_bare_denoisers_that_need_a_pipeline(tmp_path: Path) -> None:
    flux = FluxTransformer2DModel(num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=8)
    for name, model in (("flux", flux), ("unet", prompted_unet())):
        save_denoiser(model, tmp_path / name, FlowMatchEulerDiscreteScheduler())
        assert "is also asked with encoder_hidden_states, which a pipeline makes; pass the pipeline's folder" in refusal(tmp_path / name)


def test_images_of_unknown_size(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("unet")
    edit(folder / "config.json", sample_size=None)
    assert "field 'sample_size' is missing or null" in refusal(folder)
    edit(folder / "config.json", sample_size=8)
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(folder)
    assert "shifts timesteps by the size of images" in refusal(folder)


def test_a_single_file(make_denoiser: Callable[..., Path]) -> None:
    assert ":FOLDER, with a diffusers folder that has the configs" in refusal(make_denoiser("unet") / WEIGHTS)


@pytest.mark.parametrize(
    "fields",
    [{"num_layers": 10**6}, {"in_channels": 10**12}, {"sample_size": [8, 10**12]}, {"inner": {"depths": [2, 10**6]}}, {"x": -(10**12)}],
    ids=str,
)
def test_numbers_that_no_model_has(fields: dict[str, object], make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("dit", 4)
    edit(folder / "config.json", **fields)
    assert "more than the" in refusal(folder) and "that a model may have" in refusal(folder)


def test_a_pipe_is_no_config(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("dit", 4)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "config.json: is no file but a device or a pipe; put a file in its place" in refusal(folder)
