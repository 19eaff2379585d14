"""Several components of a pipeline: which are found, and the way from them to a folder that loads with all of them quantized."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import sedaq
from sedaq.aq.activations.choice import choose
from sedaq.aq.export.apply import PLAN_FILE, apply, assemble, pipeline_bytes
from sedaq.aq.modules.layers import AQEmbedding, quantized_modules
from sedaq.aq.plans.menu import heuristic_menus
from sedaq.aq.plans.plan import Plan
from sedaq.aq.plans.store import EncodingStore
from sedaq.aq.tuning.components import tune_components
from sedaq.errors import InputError
from sedaq.models.calibration import input_columns, tokens_per_image
from sedaq.models.components import Components
from sedaq.models.hooks import hooking, input_of
from sedaq.models.layers import EMBEDDING, Layer
from sedaq.models.loading import load
from sedaq.models.subject import Subject
from sedaq.sensitivity.probing.gradients import output_gradients

from .families import FAMILIES, PROMPTS, saved

WAN = sedaq.SamplingConfig(steps=3, **FAMILIES["wan-experts"].settings)
SD = sedaq.SamplingConfig(steps=2, **FAMILIES["sd"].settings)
ALL = ("unet", "text_encoder", "vae")


def uniform(subject: Subject, rate: float, store: EncodingStore) -> Plan:
    formats = {name: next(e.format for e in menu if e.rate >= rate) for name, menu in heuristic_menus(subject).items()}
    return Plan.of(subject, formats, encoding=store.identity)


def stored(subject: Subject, folder: Path, sampling: sedaq.SamplingConfig) -> EncodingStore:
    calibration = {"seed": 0, "n_images": 2, "steps": sampling.steps, **sampling.identity}
    return EncodingStore(subject, folder, calibration=calibration, effort="draft")


def test_both_experts_are_denoisers(tmp_path: Path) -> None:
    subject = load(saved("wan-experts", tmp_path), prompts=PROMPTS)
    assert set(subject.components) == {"transformer", "transformer_2"} and isinstance(subject.denoiser, Components)
    assert {layer.name.partition(".")[0] for layer in subject.layers} == set(subject.components)
    first, second = (subject.parts[f"{name}."] for name in subject.components)
    assert len(first.layers) + len(second.layers) == len(subject.layers)
    assert not {layer.role for layer in first.layers} & {layer.role for layer in second.layers}, "they share no codebooks"
    assert subject.denoisers.keys() == subject.parts.keys()


def test_a_component_of_its_own(tmp_path: Path) -> None:
    folder = saved("wan-experts", tmp_path)
    subject = load(folder, prompts=PROMPTS, components=["transformer_2"])
    assert subject.components == ("transformer_2",) and not isinstance(subject.denoiser, Components)
    assert subject.named_components == ("transformer_2",), "a plan says which of the two it is of"
    plan = sedaq.uniform_plan(folder, sedaq.Budget(bits=4.0), components=["transformer_2"])
    plan.validate(load(folder, prompts=PROMPTS, components=plan.components))
    whole = load(folder, prompts=PROMPTS)
    alone = {f"transformer_2.{layer.name}" for layer in subject.layers}
    assert alone < {layer.name for layer in whole.layers} and whole.named_components == whole.components


def test_wrong_names(tmp_path: Path) -> None:
    folder = saved("sd", tmp_path)
    with pytest.raises(InputError, match="`components` txt_encoder: .* no such module; choose of vae, text_encoder, unet"):
        load(folder, components=["txt_encoder"])
    with pytest.raises(InputError, match="`components` tokenizer"):
        load(folder, components=["tokenizer"])
    with pytest.raises(InputError, match="is no pipeline; leave `components` out"):
        load("mnist-dit", components=["unet"])


@pytest.mark.parametrize(("name", "components", "sampling"), [("wan-experts", (), WAN), ("sd", ALL, SD)])
def test_from_plan_to_folder(name: str, components: tuple[str, ...], sampling: sedaq.SamplingConfig, tmp_path: Path) -> None:
    """Sizes are exact, the plan says what it is for, everything loads by diffusers alone and gives the images that were measured."""
    folder = saved(name, tmp_path)
    subject = load(folder, prompts=PROMPTS, components=components)
    store = stored(subject, tmp_path / "store", sampling)
    plan = uniform(subject, 3.0, store)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").components == subject.components
    apply(subject, plan, store, tmp_path / "out", sampling=sampling)

    weights = [path for part in subject.components for path in (tmp_path / "out" / part).glob("*.safetensors")]
    assert len(weights) == len(subject.components) and sum(path.stat().st_size for path in weights) == plan.size_bytes
    assert (tmp_path / "out" / PLAN_FILE).is_file()
    total = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert total <= pipeline_bytes(subject, plan) <= total + 1024

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    for part in subject.components:
        layers = [layer for layer in subject.layers if layer.name.startswith(f"{part}.")]
        assert len(quantized_modules(getattr(pipeline, part))) == len(layers)
        assert not any(tensor.is_meta for tensor in getattr(pipeline, part).state_dict().values())
    found = load(tmp_path / "out", prompts=PROMPTS, quantized=True)
    assert set(found.components) == set(subject.components)
    measured = found.sample(sampling, seed=1, n_images=2)
    replaced = {layer.name: store.get(layer, plan.formats[layer.name]).dequantize() for layer in subject.layers}
    with subject.weights_replaced(replaced):
        expected = subject.sample(sampling, seed=1, n_images=2)
    torch.testing.assert_close(measured, expected, atol=2e-3, rtol=0)
    assert not torch.allclose(measured, subject.sample(sampling, seed=1, n_images=2), atol=2e-3)


def test_a_text_encoder_is_saved_again(tmp_path: Path) -> None:
    """transformers loads it alone, its table of embeddings among its codes, and save_pretrained writes the same tensors."""
    from transformers import CLIPTextModel

    subject = load(saved("sd", tmp_path), prompts=PROMPTS, components=["text_encoder"])
    assert any(layer.kind == "embedding" for layer in subject.layers)
    store = stored(subject, tmp_path / "store", SD)
    plan = uniform(subject, 3.0, store)
    apply(subject, plan, store, tmp_path / "out", sampling=SD)
    model = CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder")
    assert any(isinstance(module, AQEmbedding) for module in model.modules())
    model.save_pretrained(tmp_path / "again")
    again = CLIPTextModel.from_pretrained(tmp_path / "again")
    ids = torch.arange(10).reshape(1, -1)
    with torch.inference_mode():
        assert torch.equal(model(ids)[0], again(ids)[0])
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "sedaq"


def test_denoisers_are_tuned_one_after_the_other(tmp_path: Path) -> None:
    subject = load(saved("wan-experts", tmp_path), prompts=PROMPTS)
    store = stored(subject, tmp_path / "store", WAN)
    plan = uniform(subject, 3.0, store)
    tuning = sedaq.TuneConfig(steps=3, n_images=4, batch_size=2, sampling_steps=3)
    parts = apply(subject, plan, store, tmp_path / "out", tune=tuning, sampling=WAN)
    assert parts.keys() == {"transformer.", "transformer_2."}
    assert all(part.losses for part in parts.values())
    records = [json.loads(line) for line in (tmp_path / "store" / "tunings.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == [f"out {name}" for name in subject.components]
    with pytest.raises(InputError, match="`tune_images`: they teach a single denoiser"):
        apply(subject, plan, store, tmp_path / "out", tune=tuning, sampling=WAN, tune_images=_one_image(tmp_path))


def test_a_model_in_16_bits_is_tuned_as_in_float32(tmp_path: Path) -> None:
    """The same encodings become the same, and the model that was sampled in 16 bits stays as it is."""
    folder, in_bfloat16 = saved("sd", tmp_path), replace(SD, dtype="bfloat16")
    half = load(folder, prompts=PROMPTS, dtype="bfloat16")
    store = stored(half, tmp_path / "store", in_bfloat16)
    plan = uniform(half, 3.0, store)
    tuning = sedaq.TuneConfig(steps=4, n_images=4, batch_size=2, sampling_steps=2, check_every=2)
    expected = tune_components(load(folder, prompts=PROMPTS), dict(assemble(half, plan, store)), tuning, sampling=SD)[""]
    tuned = apply(half, plan, store, tmp_path / "out", tune=tuning, sampling=in_bfloat16)[""]
    assert tuned.losses == expected.losses and tuned.losses
    for name, encoding in expected.encodings.items():
        assert all(torch.equal(tensor, tuned.encodings[name].tensors[key]) for key, tensor in encoding.tensors.items()), name
    assert {parameter.dtype for parameter in half.denoiser.parameters()} == {torch.bfloat16}
    found = load(tmp_path / "out", prompts=PROMPTS, quantized=True, dtype="bfloat16")
    assert found.sample(in_bfloat16, seed=1, n_images=1).isfinite().all()


def _one_image(folder: Path) -> Path:
    from PIL import Image

    (folder / "own").mkdir()
    Image.new("RGB", (16, 16)).save(folder / "own" / "0.png")
    return folder / "own"


def test_only_denoisers_have_gradients(tmp_path: Path) -> None:
    subject = load(saved("sd", tmp_path), prompts=PROMPTS, components=ALL)
    found = output_gradients(subject, SD, seed=0)
    assert {name.partition(".")[0] for name in found} == {"unet"}
    assert all(gradient.sum() > 0 for gradient in found.values())


def test_a_run_keeps_its_components(tmp_path: Path) -> None:
    folder = saved("sd", tmp_path)
    sampling = sedaq.SamplingConfig(steps=2, prompts=tuple(PROMPTS), **FAMILIES["sd"].settings)  # type: ignore[arg-type]
    run = sedaq.Run(tmp_path / "run", folder, sampling=sampling, components=["unet", "text_encoder"], images=8)
    run._opened.write()
    again = sedaq.Run(tmp_path / "run")
    assert again.subject.components == ("unet", "text_encoder")
    with pytest.raises(InputError, match=r"was begun with components = \('unet', 'text_encoder'\)"):
        sedaq.Run(tmp_path / "run", components=["unet"])


@pytest.mark.parametrize("steps", [2, 6])
def test_tokens_of_what_is_asked_once_do_not_grow_with_the_steps(steps: int, tmp_path: Path) -> None:
    """What is told of two steps is what an image of so many steps gives each layer."""
    subject = load(saved("sd", tmp_path), prompts=PROMPTS, components=ALL)
    layers = [layer for layer in subject.layers if layer.kind != EMBEDDING]
    sampling = replace(SD, steps=steps)
    counted: Counter[str] = Counter()

    def count(layer: Layer) -> Callable[..., None]:
        def add(module: Any, args: Any, kwargs: Any) -> None:
            counted[layer.name] += input_columns(input_of(args, kwargs), layer, module).shape[1]

        return add

    with hooking(subject.denoiser, before={layer.name: count(layer) for layer in layers}):
        subject.sample(sampling, seed=0, n_images=1)
    assert tokens_per_image(subject, layers, sampling) == {layer.name: counted[layer.name] for layer in layers}
    assert {name.partition(".")[0] for name, n in counted.items() if n} == set(ALL)


def test_an_expert_that_sleeps(tmp_path: Path) -> None:
    """Two steps end before the second expert's timesteps: it is encoded, and left out of what asks denoisers again."""
    short = sedaq.SamplingConfig(steps=2, **FAMILIES["wan-experts"].settings)
    subject = load(saved("wan-experts", tmp_path), prompts=PROMPTS)
    assert {name.partition(".")[0] for name in output_gradients(subject, short, seed=0)} == {"transformer"}
    assert {name.partition(".")[0] for name in choose(subject, 8, sampling=short)} == {"transformer"}
    store = stored(subject, tmp_path / "store", short)
    tuning = sedaq.TuneConfig(steps=2, n_images=4, batch_size=2, sampling_steps=2)
    parts = apply(subject, uniform(subject, 3.0, store), store, tmp_path / "out", tune=tuning, sampling=short)
    assert parts["transformer."].losses and parts["transformer_2."].ending.startswith("it is not called")
    alone = load(tmp_path / "wan-experts", prompts=PROMPTS, components=["transformer_2"])
    with pytest.raises(InputError, match="did not call the denoiser's forward"):
        output_gradients(alone, short, seed=0)
