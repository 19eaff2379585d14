"""Weights that stay in their files: the same layers, weights, sizes and fingerprints as of a loaded model, and nothing in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sedaq.errors import InputError
from sedaq.models.loading import load
from sedaq.models.mapped import MappedTensors
from sedaq.models.subject import Subject
from sedaq.models.unloaded import can_be_mapped


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SEDAQ_CACHE", str(folder))
    return folder


def assert_alike(mapped: Subject, loaded: Subject) -> None:
    assert mapped.mapped is not None and loaded.mapped is None
    assert all(tensor.is_meta for tensor in mapped.denoiser.state_dict().values())
    assert mapped.layers == loaded.layers and mapped.tensor_specs == loaded.tensor_specs
    assert (mapped.name, mapped.components, mapped.conditions) == (loaded.name, loaded.components, loaded.conditions)
    for layer in loaded.layers:
        assert torch.equal(mapped.weight(layer.name), loaded.weight(layer.name))
    assert (mapped.fingerprint, mapped.model_fingerprint) == (loaded.fingerprint, loaded.model_fingerprint)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_a_bare_denoiser(make_denoiser: Callable[..., Path], dtype: torch.dtype, shards: str) -> None:
    folder = make_denoiser("dit", 4)
    model = load(folder).denoiser.to(dtype)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder, max_shard_size=shards)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shards == "20KB")
    assert_alike(load(folder, mapped=True), load(folder))


def test_pipelines(pipeline_folder: Path) -> None:
    assert_alike(load(pipeline_folder, mapped=True), load(pipeline_folder))
    assert_alike(load("digits-sd", mapped=True, prompts=["a"]), load("digits-sd", prompts=["a"]))
    assert_alike(load("digits-sd", mapped=True, components=["vae", "unet"]), load("digits-sd", components=["vae", "unet"]))


def test_nothing_is_sampled(pipeline_folder: Path) -> None:
    with pytest.raises(InputError, match="its weights were not loaded, so that nothing can be sampled"):
        load(pipeline_folder, mapped=True).sample(seed=0, n_images=1)


def test_what_cannot_be_mapped_is_loaded(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("unet")
    model = load(folder).denoiser
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder, safe_serialization=False)
    assert not can_be_mapped(folder, ())
    assert load(folder, mapped=True).mapped is None
    assert load("digits-sd", mapped=True, components=["text_encoder"]).mapped is None


def test_hashes_are_kept_until_a_file_changes(make_denoiser: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    folder = make_denoiser("unet")
    before = load(folder, mapped=True).fingerprint
    assert len(list((cache / "weights").iterdir())) == 1
    monkeypatch.setattr("sedaq.models.mapped.tensor_fingerprint", lambda tensors: pytest.fail("hashed again"))
    assert load(folder, mapped=True).fingerprint == before
    monkeypatch.undo()
    monkeypatch.setenv("SEDAQ_CACHE", str(cache))
    path = next(folder.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(path)
    tensors["conv_in.bias"] += 1
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    assert load(folder, mapped=True).fingerprint != before


def test_a_bare_denoiser_has_no_components(make_denoiser: Callable[..., Path]) -> None:
    for mapped in (False, True):
        with pytest.raises(InputError, match="is no pipeline; leave `components` out"):
            load(make_denoiser("unet"), components=["unet"], mapped=mapped)


def test_what_is_wrong_is_named(make_denoiser: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_denoiser("unet")
    path = next(folder.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(path)
    del tensors["conv_in.bias"]
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"its weights lack the tensor conv_in\.bias"):
        load(folder, mapped=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.safetensors weights"):
        MappedTensors({"": tmp_path / "empty"})
    folder = make_denoiser("dit", 4)
    path = next(folder.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(path)
    tensors["pos_embed.proj.weight"][0, 0, 0, 0] = torch.nan
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"layer pos_embed\.proj: its weight holds NaN"):
        load(folder, mapped=True).weight("pos_embed.proj")
