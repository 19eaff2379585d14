"""Tiny random pipelines of many families: each is loaded and sampled in pairs, and the slow test does the whole job on each, from inspecting to the
report, where a saved folder gives the same images in another process:  pytest -m slow tests/pipelines
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn.ensemble import RandomForestRegressor

import sedaq
from sedaq.errors import InputError
from sedaq.reports import run_report
from sedaq.sensitivity.explanation import explanation
from sedaq.sensitivity.predictor import cross_validation

from .families import FAMILIES, PROMPTS, saved
from .parts import clip

SAMPLE = """
import json, sys, torch, sedaq
folder, sampling, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
config = sedaq.SamplingConfig(**sampling)
subject = sedaq.load(folder, prompts=config.prompt_lines, quantized=True)
torch.save(subject.sample(config, seed=3, n_images=2), out)
"""


@pytest.fixture
def less_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_report, "N_SHOWN", 2)
    monkeypatch.setattr(cross_validation, "REPEATS", 1)
    monkeypatch.setattr(cross_validation, "BOOTSTRAPS", 20)
    monkeypatch.setattr(cross_validation, "RandomForestRegressor", lambda _, **settings: RandomForestRegressor(5, **settings))
    monkeypatch.setattr(explanation, "N_DRAWS", 10)
    monkeypatch.setattr(explanation, "N_SPLITS", 2)
    monkeypatch.setenv("SEDAQ_KERNEL", "reference")


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random vision model in a folder."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**size)).save_pretrained(folder)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return f"transformers:{folder}"


def sampling_of(name: str, folder: Path) -> dict[str, object]:
    """Fields of a SamplingConfig, as JSON holds them."""
    family = FAMILIES[name]
    found: dict[str, object] = {"steps": 4 if family.pictures else 2, "batch_size": 4, **family.settings}
    if family.prompted:
        found["prompts"] = list(PROMPTS)
    if family.pictures:
        rng = np.random.default_rng(0)
        for kind in ("input_images", "input_masks") if name == "inpainting" else ("input_images",):
            (folder / kind).mkdir()
            for i in range(2):
                Image.fromarray(rng.integers(0, 255, (*family.pictures, 3), dtype=np.uint8)).save(folder / kind / f"{i}.png")
            found[kind] = str(folder / kind)
    return found


def in_another_process(folder: Path, sampling: dict[str, object], out: Path) -> torch.Tensor:
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", SAMPLE, str(folder), json.dumps(sampling), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_are_paired(name: str, tmp_path: Path) -> None:
    """Image i depends on the seed and on i alone, in whatever batch it is sampled."""
    sampling = sedaq.SamplingConfig(**sampling_of(name, tmp_path))  # type: ignore[arg-type]
    subject = sedaq.load(saved(name, tmp_path), prompts=sampling.prompt_lines)
    subject.check(sampling)
    several, alone = subject.sample(sampling, seed=1, n_images=3), subject.sample(sampling, seed=1, start=2, n_images=1)
    assert len(several) == 3 and several.ndim in (4, 5) and several.min() >= 0 and several.max() <= 1
    torch.testing.assert_close(several[2:], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(several[0], several[2], atol=1e-4)
    assert subject.shape_of(sampling) == several.shape[-3:]


def test_what_a_family_needs_is_asked_for(tmp_path: Path) -> None:
    for name, asked in (("img2img", "`input_images`: StableDiffusionImg2ImgPipeline starts from images"), ("sd", "needs prompts")):
        folder = saved(name, tmp_path)
        subject = sedaq.load(folder, prompts=list(PROMPTS) if name == "img2img" else None)
        with pytest.raises(InputError, match=asked):
            subject.sample(sedaq.SamplingConfig(steps=2), seed=0, n_images=1)
    with pytest.raises(InputError, match=r"divisible by 8"):
        sedaq.load(folder, prompts=list(PROMPTS)).sample(sedaq.SamplingConfig(steps=2, height=13, width=16), seed=0, n_images=1)


def test_stable_cascade_cannot_be_loaded(tmp_path: Path) -> None:
    """diffusers has moved its decoder's autoencoder; once it loads again, docs/models.md says so, too."""
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    (words, encoder), blocks = clip(projection=True), ["SDCascadeResBlock", "SDCascadeTimestepBlock"]
    once = {f"{way}_{what}": [1] for way in ("down", "up") for what in ("num_layers_per_block", "blocks_repeat_mappers")}
    decoder = diffusers.StableCascadeUNet(
        block_out_channels=[8],
        num_attention_heads=[1],
        block_types_per_layer=[blocks],
        conditioning_dim=16,
        clip_text_pooled_in_channels=16,
        dropout=[0.1],
        **once,
    )
    codec = PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=8)
    pipeline = diffusers.StableCascadeDecoderPipeline(decoder, words, encoder, diffusers.DDPMWuerstchenScheduler(), codec)
    pipeline.save_pretrained(tmp_path / "cascade")
    with pytest.raises(ValueError, match="no class `PaellaVQModel`"):
        diffusers.StableCascadeDecoderPipeline.from_pretrained(tmp_path / "cascade")
    with pytest.raises(
        InputError, match="its vqgan is a PaellaVQModel, which diffusers .* cannot load by itself; hand it to from_pretrained"
    ):
        sedaq.load(tmp_path / "cascade", prompts=list(PROMPTS))
    index = tmp_path / "cascade" / "model_index.json"
    index.write_text(
        index.read_text().replace('"diffusers",\n    "PaellaVQModel"', '"wuerstchen",\n    "PaellaVQModel"')
    )  # as it is published
    with pytest.raises(InputError, match="the vqgan comes from 'wuerstchen', code that sedaq does not run"):
        sedaq.load(tmp_path / "cascade", prompts=list(PROMPTS))


@pytest.mark.slow
@pytest.mark.usefixtures("less_repetition")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_job(name: str, extractor: str, tmp_path: Path) -> None:
    whole_job(name, (), extractor, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("less_repetition")
def test_the_whole_job_on_all_components(extractor: str, tmp_path: Path) -> None:
    whole_job("sd", ("unet", "text_encoder", "vae"), extractor, tmp_path)


def whole_job(name: str, components: tuple[str, ...], extractor: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    fields = sampling_of(name, tmp_path)
    sampling = sedaq.SamplingConfig(**fields)
    inspected = sedaq.inspect(folder, components=components)
    assert inspected["n_layers"] > 5
    run = sedaq.Run(
        tmp_path / "run", folder, sampling=sampling, images=8, reference_images=12, extractor=extractor, components=components or None
    )
    run.probe(12)
    fit = run.fit()
    assert len(fit.to_frame()) > inspected["n_layers"]
    found = run.search(sedaq.Budget(bits=4.0), trials=5)
    assert found.plan.bits_per_weight <= 4.0
    rounded = run.search(sedaq.Budget(bits=4.0), trials=5, activations=8)
    assert rounded.plan.activations
    for plan, tune in (
        (found.plan, sedaq.TuneConfig(steps=20, n_images=8, batch_size=4, sampling_steps=int(str(fields["steps"])))),
        (rounded.plan, None),
    ):
        out = tmp_path / ("tuned" if tune else "rounded")
        run.apply(plan, out, tune=tune)
        loaded = sedaq.load(out, prompts=sampling.prompt_lines, quantized=True)
        here = loaded.sample(sampling, seed=3, n_images=2)
        assert torch.equal(here, in_another_process(out, fields, tmp_path / "images")), out.name
        full = run.subject.sample(sampling, seed=3, n_images=2)
        assert here.shape == full.shape and not torch.equal(here, full)
    measured = sedaq.evaluate(tmp_path / "tuned", folder, images=8, sampling=sampling, extractor=extractor)
    assert measured.metrics["psnr"]["value"] > 0
    assert "Sensitivity" in run.report().read_text()
