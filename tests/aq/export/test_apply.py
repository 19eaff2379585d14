"""From a plan to a folder that diffusers loads in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from sedaq.aq.export import apply as apply_module
from sedaq.aq.export.apply import PLAN_FILE, apply, assemble, pipeline_bytes
from sedaq.aq.export.card import card_text
from sedaq.aq.formats import AS_IS, Format
from sedaq.aq.modules.layers import densify
from sedaq.aq.plans.plan import Plan
from sedaq.aq.plans.store import EncodingStore
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.errors import InputError
from sedaq.models.adapters.pipeline import PipelineAdapter
from sedaq.models.folders import WEIGHTS_FILE
from sedaq.models.loading import load
from sedaq.models.manifest import MANIFEST_FILE
from sedaq.models.sampling import SamplingConfig

from ...builders import save_denoiser, unet

CALIBRATION = {"seed": 0, "n_images": 8, "steps": 2}
LOAD = """
import sys, torch, sedaq, diffusers
folder, out, kind = sys.argv[1:]
model = getattr(diffusers, kind).from_pretrained(folder)
inputs = torch.load(out + ".in", weights_only=True)
with torch.inference_mode():
    answers = [model(*inputs["args"], **inputs["kwargs"]).sample for _ in range(2)]
assert torch.equal(*answers)
torch.save(answers[0], out)
"""


def question() -> dict[str, object]:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"args": [x, torch.tensor([5, 50, 95])], "kwargs": {"class_labels": torch.tensor([0, 1, 3])}}


def answer(model: nn.Module) -> torch.Tensor:
    asked = question()
    with torch.inference_mode():
        return model(*asked["args"], **asked["kwargs"]).sample


def dense_answer(subject, plan, store) -> torch.Tensor:
    """Of the full-precision model with the assembled dense weights put in."""
    with subject.weights_replaced({name: encoding.dequantize() for name, encoding in assemble(subject, plan, store).items()}):
        return answer(subject.denoiser)


def in_fresh_process(folder: Path, kind: str, tmp_path: Path) -> torch.Tensor:
    torch.save(question(), tmp_path / "answer.in")
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "SEDAQ_KERNEL": "reference", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "answer"), kind]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "answer", weights_only=True)


def test_the_folder_loads_in_a_fresh_process(subject, mixed_plan, store, quantized, tmp_path, monkeypatch):
    monkeypatch.setenv("SEDAQ_KERNEL", "reference")
    fresh = in_fresh_process(quantized, "DiTTransformer2DModel", tmp_path)
    torch.testing.assert_close(fresh, dense_answer(subject, mixed_plan, store), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(fresh, answer(subject.denoiser), atol=1e-3), "quantization changed nothing"


def test_what_the_folder_holds(subject, mixed_plan, quantized):
    assert (quantized / WEIGHTS_FILE).stat().st_size == mixed_plan.size_bytes
    assert {path.name for path in quantized.iterdir()} == {
        WEIGHTS_FILE,
        PLAN_FILE,
        MANIFEST_FILE,
        "config.json",
        "scheduler_config.json",
        "README.md",
    }
    assert [path.name for path in quantized.parent.iterdir()] == ["quantized"], "a temporary folder was left"
    Plan.load(quantized / PLAN_FILE).validate(subject)
    config = json.loads((quantized / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "sedaq"
    assert config["layers"] == {name: str(format) for name, format in mixed_plan.formats.items() if format != AS_IS}
    stored = safetensors.torch.load_file(quantized / WEIGHTS_FILE)
    expected = {}
    for layer in subject.layers:
        for name, spec in mixed_plan.formats[layer.name].tensor_specs(layer.shape).items():
            expected[f"{layer.name}.{name}"] = spec
    assert {name: (stored[name].dtype, tuple(stored[name].shape)) for name in expected} == expected


def test_a_quantized_folder_can_be_sampled_but_not_quantized_again(quantized):
    assert load(quantized, quantized=True).sample(SamplingConfig(steps=2), seed=0, n_images=2).shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match="already quantized"):
        load(quantized)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_asked_for_leaves_the_codes(subject, mixed_plan, store, quantized, dtype):
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(quantized, torch_dtype=dtype)
    stored, state = safetensors.torch.load_file(quantized / WEIGHTS_FILE), model.state_dict()
    with_codes = tuple(f"{layer}." for layer, format in mixed_plan.formats.items() if format != AS_IS)
    for name, tensor in stored.items():
        if name.startswith(with_codes) and not name.endswith(".bias"):
            assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
        elif tensor.is_floating_point():
            assert state[name].dtype == dtype, name
    asked = question()
    asked["args"][0] = asked["args"][0].to(dtype)
    with torch.inference_mode():
        found = model(*asked["args"], **asked["kwargs"]).sample
    assert found.dtype == dtype
    reference = dense_answer(subject, mixed_plan, store)
    assert (found.float() - reference).norm() < {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}[dtype] * reference.norm()


def test_saving_a_loaded_model_and_loading_that(quantized, tmp_path, monkeypatch):
    from diffusers import DiTTransformer2DModel

    monkeypatch.setenv("SEDAQ_KERNEL", "reference")
    first = DiTTransformer2DModel.from_pretrained(quantized)
    first.save_pretrained(tmp_path / "again")
    second = DiTTransformer2DModel.from_pretrained(tmp_path / "again")
    assert torch.equal(answer(second), answer(first))
    stored = safetensors.torch.load_file(quantized / WEIGHTS_FILE)
    again = safetensors.torch.load_file(tmp_path / "again" / WEIGHTS_FILE)
    assert again.keys() == stored.keys()
    with_codes = [name for name in stored if name.endswith((".codes", ".codebooks", ".scales", ".codebook_scales"))]
    assert with_codes and all(torch.equal(again[name], stored[name]) and again[name].dtype == stored[name].dtype for name in with_codes)


def test_densified_equals_coded(quantized):
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(quantized)
    with_codes = answer(model)
    densify(model)
    torch.testing.assert_close(answer(model), with_codes, atol=1e-5, rtol=1e-5)


def test_a_unet_with_convolutions(tmp_path):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    subject = load(save_denoiser(unet(attends=True, num_class_embeds=4), tmp_path / "unet"))
    subject.denoiser.to(memory_format=torch.channels_last)  # as weights lie that were trained so: files hold them in the usual order
    store = EncodingStore(subject, tmp_path / "run", calibration=CALIBRATION)
    texts = ("1x4g4", "1x4g4c", "int8")
    formats = {
        layer.name: Format.parse("1x4g9t" if layer.shape[2:] == (3, 3) and i % 2 else texts[i % 2])
        for i, layer in enumerate(subject.layers)
    }
    formats = {name: f if f.fits(subject.layer(name).shape) else Format.parse("int8") for name, f in formats.items()}
    formats["mid_block.resnets.0.conv1"] = AS_IS
    assert {str(f) for f in formats.values()} >= {"1x4g4", "1x4g9t", "int8", "asis"}
    plan = Plan.of(subject, formats, encoding=store.identity)
    apply(subject, plan, store, tmp_path / "quantized")
    assert (tmp_path / "quantized" / WEIGHTS_FILE).stat().st_size == plan.size_bytes
    loaded = UNet2DModel.from_pretrained(tmp_path / "quantized")
    torch.testing.assert_close(answer(loaded), dense_answer(subject, plan, store), atol=1e-5, rtol=1e-5)


@pytest.fixture
def pipeline_case(pipeline_folder, tmp_path):
    subject = load(pipeline_folder)
    store = EncodingStore(subject, tmp_path / "run", calibration=CALIBRATION)
    return subject, store, Plan.of(subject, {layer.name: Format.parse("1x4g4") for layer in subject.layers}, encoding=store.identity)


def test_a_pipeline_folder_gives_a_pipeline_folder(pipeline_folder, pipeline_case, tmp_path):
    from diffusers import DDIMPipeline, DiffusionPipeline

    subject, store, plan = pipeline_case
    apply(subject, plan, store, tmp_path / "quantized")
    assert (tmp_path / "quantized" / "unet" / WEIGHTS_FILE).stat().st_size == plan.size_bytes
    assert (tmp_path / "quantized" / "README.md").read_text().startswith("kept\n")
    assert (tmp_path / "quantized" / "scheduler" / "scheduler_config.json").exists()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "quantized")
    assert isinstance(pipeline, DDIMPipeline)
    dense = {name: encoding.dequantize() for name, encoding in assemble(subject, plan, store).items()}
    with subject.weights_replaced(dense):
        expected = subject.sample(SamplingConfig(steps=3), seed=0, n_images=2)
    found = PipelineAdapter(pipeline, None).sample(SamplingConfig(steps=3), seed=0, start=0, n_images=2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(found, subject.sample(SamplingConfig(steps=3), seed=0, n_images=2), atol=1e-3)
    # An earlier result may be replaced.
    apply(subject, plan, store, tmp_path / "quantized")
    written = sum(path.stat().st_size for path in (tmp_path / "quantized").rglob("*") if path.is_file())
    assert pipeline_bytes(subject, plan) == written


def test_a_folder_inside_the_pipeline_is_refused(pipeline_folder, pipeline_case, tmp_path):
    subject, store, plan = pipeline_case
    before = sorted(pipeline_folder.rglob("*"))
    with pytest.raises(InputError, match="`out`"):
        apply(subject, plan, store, pipeline_folder / "quantized")
    assert sorted(pipeline_folder.rglob("*")) == before


def test_a_plan_of_another_model_writes_nothing(subject, pipeline_case, store, tmp_path):
    with pytest.raises(InputError, match="the plan was made for"):
        apply(subject, pipeline_case[2], store, tmp_path / "quantized")
    assert not (tmp_path / "quantized").exists()


@pytest.mark.parametrize("what", ["file", "folder", "folder of results"])
def test_what_is_in_the_way_is_refused_and_kept(what, subject, mixed_plan, store, tmp_path):
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
    else:
        kept = out / "theses" / "mine.txt"
        kept.parent.mkdir(parents=True)
        kept.write_text("mine")
        if what == "folder of results":
            mixed_plan.save(out / "earlier" / PLAN_FILE)
    with pytest.raises(InputError, match=r"`out` .*choose another name"):
        apply(subject, mixed_plan, store, out)
    assert out.read_text() == "mine" if what == "file" else kept.read_text() == "mine"


def test_an_earlier_result_and_an_empty_folder_are_replaced(subject, mixed_plan, store, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    apply(subject, mixed_plan, store, out)
    other = Plan.of(subject, {layer.name: Format.parse("int8") for layer in subject.layers}, encoding=store.identity)
    apply(subject, other, store, out)
    assert Plan.load(out / PLAN_FILE) == other and (out / WEIGHTS_FILE).stat().st_size == other.size_bytes


def test_the_working_folder_may_be_the_result(subject, mixed_plan, store, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    apply(subject, mixed_plan, store, ".")
    assert (tmp_path / "here" / WEIGHTS_FILE).stat().st_size == mixed_plan.size_bytes


@pytest.mark.parametrize("earlier", [False, True])
def test_nothing_is_half_written(earlier, subject, mixed_plan, store, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if earlier:
        apply(subject, mixed_plan, store, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()} if earlier else None

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Plan, "save", full_disk)
    with pytest.raises(InputError, match=r"out: cannot be written .No space left"):
        apply(subject, mixed_plan, store, out)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if earlier else [])
    assert not earlier or {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_unknown_keywords_are_refused(subject, mixed_plan, store, tmp_path):
    for unknown in ({"tune_step": 240}, {"tune_steps": 240}, {"guidanec": 2.0}):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(unknown))}'"):
            apply(subject, mixed_plan, store, tmp_path / "out", **unknown)
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        TuneConfig(step=240)
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_differs_from_the_plan_is_an_error(subject, mixed_plan, store, tmp_path, monkeypatch):
    monkeypatch.setattr(apply_module, "SAFETENSORS_METADATA", {"format": "pt", "note": "x" * 20})
    with pytest.raises(InputError, match="where the plan says"):
        apply(subject, mixed_plan, store, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written(subject, mixed_plan, store, tmp_path):
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / "out"  # root may write anywhere, but not below a file
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        out = tmp_path / "locked" / "out"
    with pytest.raises(InputError, match=r"`out` .*cannot be written"):
        apply(subject, mixed_plan, store, out)


def test_the_card_says_what_it_is_and_its_lines_load_it(subject, mixed_plan, quantized, monkeypatch):
    card = (quantized / "README.md").read_text()
    assert f"{mixed_plan.bits_per_weight:.3f} bits a weight: {mixed_plan.size_bytes:,} bytes" in card and card.startswith(
        "---\nlibrary_name: diffusers"
    )
    lines = [line[4:] for line in card.splitlines() if line.startswith("    ")]
    found: dict[str, object] = {}
    monkeypatch.chdir(quantized.parent)
    exec("\n".join(lines).replace("FOLDER", quantized.name), found)
    assert type(found["model"]).__name__ == "DiTTransformer2DModel"


def test_a_card_that_is_there_stays(subject, mixed_plan, monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    monkeypatch.setattr(subject, "folder", tmp_path)
    measured = {"metrics": {"fid": {"value": 12.345, "se": 0.5}}, "n_images": 512, "steps": 10}
    text = card_text(subject, replace(mixed_plan, measured=measured))
    assert text.startswith("---\nlicense: mit\n---\n# Mine\n\n# ") and "Fréchet distance 12.35 ± 0.5 (512 images, 10 steps)" in text


def test_files_of_the_user_are_not_deleted(subject, mixed_plan, store, quantized):
    apply(subject, mixed_plan, store, quantized)  # what sedaq wrote is replaced
    (quantized / "NOTES.md").write_text("mine")
    with pytest.raises(InputError, match=r"holds NOTES.md, which sedaq did not write"):
        apply(subject, mixed_plan, store, quantized)
    assert (quantized / "NOTES.md").read_text() == "mine"
