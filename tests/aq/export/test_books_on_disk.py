"""Folders of layers that share codebooks: one tensor in the file, and in use in every layer when loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from sedaq.aq.encoding import Encoding
from sedaq.aq.export.apply import apply, assemble
from sedaq.aq.formats import Format
from sedaq.aq.plans.plan import Plan, book_holders, tensor_specs
from sedaq.aq.plans.store import EncodingStore
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.errors import InputError
from sedaq.models.folders import WEIGHTS_FILE
from sedaq.models.loading import load

from ...builders import dit, save_denoiser, unet
from ..conftest import CALIBRATION, SHARED_FORMATS
from .test_apply import answer, dense_answer, in_fresh_process


@pytest.fixture
def shared_folder(blocks, shared_plan, books, tmp_path) -> Path:
    apply(blocks, shared_plan, books, tmp_path / "quantized")
    return tmp_path / "quantized"


def attention(part: str) -> list[str]:
    return [f"transformer_blocks.{i}.attn1.{part}" for i in range(3)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_the_plans_size_is_that_on_disk(blocks, shared_plan, shared_folder):
    assert (shared_folder / WEIGHTS_FILE).stat().st_size == shared_plan.size_bytes
    assert safetensors.torch.load_file(shared_folder / WEIGHTS_FILE).keys() == tensor_specs(blocks, shared_plan.formats).keys()
    config = json.loads((shared_folder / "config.json").read_text())["quantization_config"]["layers"]
    assert [config[name] for name in attention("to_q")] == [SHARED_FORMATS["to_q"]] * 3


# -- loading -------------------------------------------------------------------------------------------------------------------------------


def from_pretrained(folder: Path, **settings):
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel.from_pretrained(folder, **settings)


def assert_quantized_as(model: nn.Module, encodings: dict[str, Encoding]) -> None:
    for name, encoding in encodings.items():
        assert same(model.get_submodule(name).stored, encoding.tensors), name


def test_a_fresh_process_loads_what_was_assembled(blocks, shared_plan, books, shared_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SEDAQ_KERNEL", "reference")
    fresh = in_fresh_process(shared_folder, "DiTTransformer2DModel", tmp_path)
    torch.testing.assert_close(fresh, dense_answer(blocks, shared_plan, books), atol=1e-5, rtol=1e-5)


CASTS = {
    "none": lambda model: model,
    "half": lambda model: nn.Sequential(model).half()[0],  # diffusers' own refuses
    "bfloat16 and back": lambda model: nn.Sequential(model).to(torch.bfloat16).float()[0],
    "device": lambda model: model.to("cpu"),
    "copy": copy.deepcopy,
    "new tensors": lambda model: model._apply(torch.clone),  # as a move to another device makes them
}


@pytest.mark.parametrize("cast", CASTS)
def test_casts_and_moves_keep_books_and_their_one_place_in_the_state(cast, blocks, shared_plan, books, shared_folder, tmp_path):
    encodings = assemble(blocks, shared_plan, books)
    model = CASTS[cast](from_pretrained(shared_folder))
    assert_quantized_as(model, encodings)
    stored = safetensors.torch.load_file(shared_folder / WEIGHTS_FILE)
    assert model.state_dict().keys() == stored.keys()
    model.save_pretrained(tmp_path / "again")
    again = safetensors.torch.load_file(tmp_path / "again" / WEIGHTS_FILE)
    with_codes = [name for name in stored if name.endswith((".codes", ".codebooks", ".scales", ".codebook_scales"))]
    assert again.keys() == stored.keys() and same({name: again[name] for name in with_codes}, {name: stored[name] for name in with_codes})
    second = from_pretrained(tmp_path / "again")
    assert_quantized_as(second, encodings)
    if cast in ("none", "device", "copy", "new tensors"):
        assert torch.equal(answer(second), answer(model))
        torch.testing.assert_close(answer(model), dense_answer(blocks, shared_plan, books), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_asked_for_leaves_books(dtype, blocks, shared_plan, books, shared_folder):
    assert_quantized_as(from_pretrained(shared_folder, torch_dtype=dtype), assemble(blocks, shared_plan, books))


def test_loading_a_state_reaches_all_that_share(shared_folder):
    model = from_pretrained(shared_folder)
    before = answer(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["transformer_blocks.0.attn1.to_q.codebook_scales"].mul_(2)
    model.load_state_dict(state)
    scales = [model.get_submodule(name).matrix().codebooks.abs().amax() for name in attention("to_q")]
    assert scales[0] == scales[1] == scales[2] and not torch.equal(answer(model), before)


def assert_named_when_missing(lost: str, folder: Path) -> None:
    stored = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    del stored[lost]
    safetensors.torch.save_file(stored, folder / WEIGHTS_FILE, {"format": "pt"})
    with pytest.raises(InputError, match=f"the folder's weights lack tensor '{lost}'") as caught:
        from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", ["transformer_blocks.0.attn1.to_q.codebooks", "transformer_blocks.1.attn1.to_v.codebooks"])
def test_a_missing_book_is_one_clear_error(lost, shared_folder):
    assert_named_when_missing(lost, shared_folder)


def test_a_missing_book_is_named_as_its_holder_has_it_where_names_and_modules_differ_in_order(tmp_path):
    """Blocks 2 and 10 share, and 10 is the first by name."""
    torch.manual_seed(0)
    subject = load(save_denoiser(dit(4, n_blocks=11), tmp_path / "model"))
    store = EncodingStore(subject, tmp_path / "run", calibration=CALIBRATION)
    formats = dict.fromkeys((layer.name for layer in subject.layers), Format("asis"))
    formats |= {f"transformer_blocks.{i}.attn1.to_q": Format.parse("1x3g4@attention-query") for i in (2, 10)}
    plan = Plan.of(subject, formats, encoding=store.identity)
    apply(subject, plan, store, tmp_path / "out")
    torch.testing.assert_close(answer(from_pretrained(tmp_path / "out")), dense_answer(subject, plan, store), atol=1e-5, rtol=1e-5)
    assert_named_when_missing("transformer_blocks.10.attn1.to_q.codebooks", tmp_path / "out")


def test_convolutions_share_tap_groups(tmp_path):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    subject = load(save_denoiser(unet(num_class_embeds=4), tmp_path / "unet"))
    store = EncodingStore(subject, tmp_path / "run", calibration=CALIBRATION)
    texts = {"residual conv 1": "1x5g9t@residual-conv-1", "residual conv 2": "1x5g4cq@residual-conv-2"}
    formats = {layer.name: Format.parse(texts.get(layer.role, "int8")) for layer in subject.layers}
    plan = Plan.of(subject, formats, encoding=store.identity)
    assert len(book_holders(formats)) > len(set(book_holders(formats).values())) == len(texts)
    apply(subject, plan, store, tmp_path / "quantized")
    assert (tmp_path / "quantized" / WEIGHTS_FILE).stat().st_size == plan.size_bytes
    loaded = UNet2DModel.from_pretrained(tmp_path / "quantized")
    torch.testing.assert_close(answer(loaded), dense_answer(subject, plan, store), atol=1e-5, rtol=1e-5)


def test_a_tuned_folder_loads(blocks, shared_plan, books, tmp_path):
    settings = TuneConfig(steps=4, batch_size=16, n_images=8, sampling_steps=3, check_every=2)
    tuned = apply(blocks, shared_plan, books, tmp_path / "tuned", tune=settings)[""]
    assert (tmp_path / "tuned" / WEIGHTS_FILE).stat().st_size == shared_plan.size_bytes
    assert_quantized_as(from_pretrained(tmp_path / "tuned"), tuned.encodings)
