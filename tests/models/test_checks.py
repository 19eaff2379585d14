"""Damaged models, in every way that a file can be: one line at once, whichever way the model is opened."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sedaq import Budget, InputError, SamplingConfig, Subject, evaluate, inspect, load, uniform_plan
from sedaq.cli.main import main
from sedaq.models.checks import check_finite
from sedaq.models.folders import stored_dtypes
from sedaq.models.loading import SHIPPED_FOLDER
from sedaq.models.noise import image_noise
from sedaq.models.sampling import sample_in_chunks

WEIGHTS = "diffusion_pytorch_model.safetensors"
Harm = Callable[[Path], None]


def changing(change: Callable[[dict[str, torch.Tensor]], object]) -> Harm:
    def harm(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return harm


def to_nan(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[0] = float("nan")

    return change


def test_old_names_of_attention_are_diffusers_business(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Published autoencoders have names that diffusers changes while it loads."""
    shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "mid_block.attentions.0" in name]:
            for new, old in names.items():
                if f".{new}." in name:
                    tensors[name.replace(f".{new}.", f".{old}.")] = tensors.pop(name)

    changing(rename)(tmp_path / "sd" / "vae" / WEIGHTS)
    whole, renamed = load("digits-sd"), load(tmp_path / "sd")
    sampling = SamplingConfig(steps=2)
    assert torch.equal(renamed.sample(sampling, seed=0, n_images=1), whole.sample(sampling, seed=0, n_images=1))
    assert "no place for" not in caplog.text


def test_a_mask_of_infinity_is_no_damage() -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(16, 16)
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    check_finite("masked", Masked())
    broken = Masked()
    broken.bias.data[0] = torch.inf
    with pytest.raises(InputError, match="masked: its tensor bias holds NaN or infinity"):
        check_finite("masked", broken)


def test_a_text_encoder_that_lacks_tensors_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd")
    load(tmp_path / "sd")
    assert "lack" not in caplog.text
    changing(lambda t: t.pop("final_layer_norm.weight"))(tmp_path / "sd" / "text_encoder" / "model.safetensors")
    load(tmp_path / "sd")
    assert "text_encoder: its weights lack 1 of 36 tensors, such as final_layer_norm.weight; is the folder whole?" in caplog.text


def test_an_adapters_folder_is_no_text_encoder(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd")
    (tmp_path / "sd" / "text_encoder" / "config.json").unlink()
    (tmp_path / "sd" / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    with pytest.raises(InputError, match="holds weights and no config.json"):
        load(tmp_path / "sd")


HARMS: dict[str, tuple[Harm, str]] = {
    "a tensor is gone": (changing(lambda t: t.pop("proj_out_1.bias")), "lack the tensor proj_out_1.bias"),
    "another shape": (changing(lambda t: t.update({"proj_out_1.bias": torch.zeros(3)})), "diffusers cannot load it|has shape"),
    "whole numbers": (changing(lambda t: t.update({"proj_out_1.bias": t["proj_out_1.bias"].int()})), "is stored as torch.int32"),
    "cut in half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "incomplete"),
    "empty": (lambda path: path.write_bytes(b""), "incomplete"),
}


@pytest.fixture
def dit(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED_FOLDER / "mnist-dit", tmp_path / "dit")
    return tmp_path / "dit"


@pytest.mark.parametrize("mapped", [False, True], ids=["loaded", "in its files"])
@pytest.mark.parametrize("harm", HARMS)
def test_damaged_weights(harm: str, mapped: bool, dit: Path) -> None:
    do, words = HARMS[harm]
    do(dit / WEIGHTS)
    with pytest.raises(InputError, match=words) as raised:
        load(dit, mapped=mapped)
    assert "\n" not in str(raised.value) and str(dit) in str(raised.value)


@pytest.mark.parametrize("mapped", [False, True], ids=["loaded", "in its files"])
def test_surplus_tensors_are_warned_of(mapped: bool, dit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A config of fewer blocks makes a smaller model of the same file."""
    changing(lambda t: t.update({"transformer_blocks.9.ff.bias": torch.zeros(3), "logvar": torch.zeros(1)}))(dit / WEIGHTS)
    load(dit, mapped=mapped)
    text = "its weights hold the tensor .* and 1 more, which its config has no place for; take both from one model"
    assert re.search(text, caplog.text) and str(dit) in caplog.text
    shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd")
    changing(lambda t: t.update(more=torch.zeros(1)))(tmp_path / "sd" / "vae" / WEIGHTS)
    load(tmp_path / "sd")
    assert "sd/vae: its weights hold the tensor more, which its config has no place for" in caplog.text


@pytest.mark.parametrize("name", ["proj_out_1.bias", "proj_out_1.weight"])
@pytest.mark.parametrize("use", [inspect, lambda folder: evaluate(folder, images=8), lambda folder: load(folder, quantized=True)])
def test_nan_is_named_by_every_way_in(name: str, use: Callable[[Path], object], dit: Path) -> None:
    changing(to_nan(name))(dit / WEIGHTS)
    with pytest.raises(InputError, match="holds NaN or infinity; repair the model|its weight holds NaN or infinity"):
        use(dit)


def test_nan_is_not_copied_into_a_folder(dit: Path, tmp_path: Path) -> None:
    changing(to_nan("proj_out_1.bias"))(dit / WEIGHTS)
    uniform_plan(dit, Budget(bits=3.0)).save(tmp_path / "plan.json")
    assert main(["apply", str(dit), str(tmp_path / "plan.json"), "--hessian", "none", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("component", ["vae", "text_encoder"])
def test_nan_in_another_component(component: str, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd")
    path = next((tmp_path / "sd" / component).glob("*.safetensors"))
    changing(to_nan(next(iter(load_file(path)))))(path)
    with pytest.raises(InputError, match=f"sd {component}: its tensor .* holds NaN"):
        load(tmp_path / "sd")


@pytest.mark.parametrize("component", ["vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_component_that_is_null(component: str, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd")
    index = json.loads((tmp_path / "sd" / "model_index.json").read_text())
    (tmp_path / "sd" / "model_index.json").write_text(json.dumps({**index, component: [None, None]}))
    with pytest.raises(InputError, match=f"its {component} is null in model_index.json, and a StableDiffusionPipeline needs one"):
        load(tmp_path / "sd")


@pytest.mark.parametrize("size", ["[8,8]", [8], [8, 8, 8], -1, 0, 8.5])
def test_sizes_of_images_that_are_none(size: object, dit: Path) -> None:
    config = json.loads((dit / "config.json").read_text())
    (dit / "config.json").write_text(json.dumps({**config, "sample_size": size}))
    with pytest.raises(InputError):
        load(dit)


def test_weights_of_eight_bits_are_counted_as_such(dit: Path) -> None:
    tensors = {name: tensor.to(torch.float8_e4m3fn) if tensor.ndim > 1 else tensor for name, tensor in load_file(dit / WEIGHTS).items()}
    save_file(tensors, dit / WEIGHTS, {"format": "pt"})
    assert stored_dtypes(dit)["proj_out_1.weight"] == torch.float8_e4m3fn
    found = inspect(dit)
    assert found["size_bytes"] == (dit / WEIGHTS).stat().st_size and found["bits_per_weight"] == 8


def test_a_component_whose_config_is_gone(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd")
    (tmp_path / "sd" / "unet" / "config.json").unlink()
    with pytest.raises(InputError, match="config.json is missing; the folder is incomplete"):
        load(tmp_path / "sd", mapped=True)


# -- samplers ----------------------------------------------------------------------------------------------------------------------------


def subject_by(make: Callable[..., Any]) -> Subject:
    """A subject whose sampler asks the denoiser, and then makes images by (images, seed, start) → images of the right ones."""
    net = nn.Linear(16, 16)

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> Any:
        right = net(image_noise(seed, start, n_images, (16,))).sigmoid().reshape(n_images, 1, 4, 4)
        return make(right, seed, start)

    return Subject(net, sample=sample, name="odd")


def test_a_right_sampler_passes() -> None:
    subject_by(lambda images, seed, start: images).check(SamplingConfig())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda images, seed, start: 2 * images - 1, "float32 from -.* they must be"),
        (lambda images, seed, start: (255 * images).to(torch.uint8), "uint8 from .*; they must be"),
        (lambda images, seed, start: images / 0 * 0, "its image 0 holds NaN or infinity; repair the sampler"),
        (lambda images, seed, start: torch.cat([images[:1], 3 * images[1:]]), "they must be"),
        (lambda images, seed, start: torch.rand(images.shape), "came out differently"),
        (lambda images, seed, start: image_noise(0, 0, len(images), (1, 4, 4)).sigmoid(), "came out differently"),
        (lambda images, seed, start: image_noise(len(images), start, len(images), (1, 4, 4)).sigmoid(), "came out differently"),
        (lambda images, seed, start: images if len(images) > 1 else images[..., :2], "came out differently"),
        (lambda images, seed, start: image_noise(0, start, len(images), (1, 4, 4)).sigmoid(), "is the same with another seed"),
        (lambda images, seed, start: images.detach().numpy(), "gave a ndarray; it must give a torch.Tensor"),
        (lambda images, seed, start: list(images), "gave a list; it must give a torch.Tensor"),
    ],
)
def test_samplers_that_nothing_can_be_measured_with(make: Callable[..., Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        subject_by(make).check(SamplingConfig())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, r"subject odd: its images are float32 from .* to 1.5 \(image 5\); they must be"),
        (-0.5, r"subject odd: its images are float32 from -0.5 to .* \(image 5\); they must be"),
        (torch.nan, "subject odd: its image 5 holds NaN or infinity"),
        (-torch.inf, "subject odd: its image 5 holds NaN or infinity"),
    ],
)
def test_an_image_of_a_later_batch_that_is_wrong_is_named(value: float, text: str) -> None:
    def spoilt(images: torch.Tensor, seed: int, start: int) -> torch.Tensor:
        images[torch.arange(start, start + len(images)) == 5, 0, 0, 0] = value
        return images

    subject = subject_by(spoilt)
    subject.check(SamplingConfig())
    with pytest.raises(InputError, match=text):
        sample_in_chunks(subject.sample, "sampling", SamplingConfig(), seed=0, n_images=12, chunk=4)


def test_a_plan_may_make_a_model_overflow() -> None:
    """Which is measured; a sampler that leaves the range is wrong all the same."""
    images = subject_by(lambda images, seed, start: images / 0).sample(seed=0, n_images=2, may_overflow=True)
    assert images.isinf().all()
    with pytest.raises(InputError, match="they must be"):
        subject_by(lambda images, seed, start: torch.cat([images[:1] / 0, 3 * images[1:]])).sample(seed=0, n_images=2, may_overflow=True)


def test_a_sampler_that_does_not_ask_the_denoiser() -> None:
    idle = Subject(
        nn.Linear(2, 2),
        sample=lambda *, seed, start, n_images, steps=None: image_noise(seed, start, n_images, (1, 4, 4)).sigmoid(),
        name="idle",
    )
    with pytest.raises(InputError, match="did not call its layers; its sample function must call the denoiser"):
        idle.check(SamplingConfig())


@pytest.mark.parametrize(
    ("against", "text"),
    [("digits-sd", "makes other images than mnist-dit"), (subject_by(lambda images, seed, start: 2 * images - 1), "they must be")],
)
def test_a_model_to_compare_with_is_looked_at_before_sampling(against: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        evaluate("mnist-dit", against, images=8, sampling=SamplingConfig(steps=2))
