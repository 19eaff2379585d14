"""Every kind of SUBJECT loads, and whatever cannot be loaded is refused in one line that says what to pass."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sedaq.errors import InputError
from sedaq.models.folders import SUBJECT_FILE
from sedaq.models.loading import SHIPPED_FOLDER, load
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject
from sedaq.storage import write_json

PYTHON_SUBJECT = """
import torch
from sedaq import Subject

def make():
    return Subject(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), sample=None, name="mine")

def other():
    return 3
"""


def refusal(subject: object, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        load(subject, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what loads --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist-dit", "mnist-unet"])
def test_shipped_names(name: str) -> None:
    subject = load(name)
    assert (subject.name, subject.image_shape, subject.extractor, subject.components) == (name, (1, 28, 28), "embedded", ())
    assert subject.conditions == list(range(10))
    assert {dtype for dtype, _ in subject.tensor_specs.values()} == {torch.float16}
    assert all(layer.role for layer in subject.layers)
    wide = sum(layer.n_weights for layer in subject.layers if max(layer.shape[:2]) >= 128)
    assert wide > 0.5 * sum(layer.n_weights for layer in subject.layers)


def test_a_bare_denoiser(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("unet", 3, dtype=torch.float16)
    subject = load(folder)
    assert (subject.name, subject.folder, subject.components, subject.extractor) == ("unet", folder, (), None)
    assert subject.conditions == [0, 1, 2] and subject.image_shape == (1, 8, 8)
    assert subject.denoiser.dtype == torch.float32 and not subject.denoiser.training
    assert subject.tensor_specs["conv_in.weight"] == (torch.float16, (8, 1, 3, 3))
    assert not any(parameter.requires_grad for parameter in subject.denoiser.parameters())


def test_conditions_by_the_denoisers_config(make_denoiser: Callable[..., Path]) -> None:
    assert load(make_denoiser("unet")).conditions is None
    assert load(make_denoiser("dit", 4)).conditions == [0, 1, 2, 3]


def test_the_subject_file_overrides_the_config(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("dit", 4)
    write_json(folder / SUBJECT_FILE, "subject", {"conditions": [2, 1], "null_condition": 4, "extractor": "embedded", "steps": 3})
    subject = load(folder)
    assert subject.conditions == [2, 1] and subject.extractor == "embedded" and subject.adapter.default_steps == 3


def test_an_unconditional_pipeline(unconditional_pipeline: Path) -> None:
    subject = load(unconditional_pipeline)
    assert (subject.name, subject.folder, subject.components, subject.conditions) == ("ddim", unconditional_pipeline, ("unet",), None)
    assert subject.image_shape == (1, 8, 8)


def test_a_class_conditional_pipeline_with_an_autoencoder(class_pipeline: Path) -> None:
    subject = load(str(class_pipeline))
    assert subject.components == ("transformer",) and subject.conditions == list(range(1000))
    assert "transformer_blocks.0.attn1.to_q" in [layer.name for layer in subject.layers]
    assert not any("encoder" in layer.name for layer in subject.layers), "the autoencoder is not the denoiser"


def test_the_denoiser_of_a_pipeline_finds_the_pipelines_scheduler(unconditional_pipeline: Path) -> None:
    subject = load(unconditional_pipeline / "unet")
    assert (subject.name, subject.components) == ("unet", ())
    assert subject.sample(SamplingConfig(steps=1), seed=0, n_images=1).shape == (1, 1, 8, 8)


def test_a_function_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PYTHON_SUBJECT)
    subject = load(f"{tmp_path / 'own.py'}:make")
    assert subject.name == "mine" and [layer.name for layer in subject.layers] == ["0", "1"]
    assert [layer.name for layer in load(f"{tmp_path / 'own.py'}:make", exclude=["1"]).layers] == ["0"]


def test_a_subject_is_itself() -> None:
    subject = Subject(torch.nn.Linear(2, 2), sample=lambda **_: torch.zeros(1), name="x", exclude=())
    assert load(subject) is subject


# -- fingerprints ------------------------------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_weights_and_settings_but_not_the_place(make_denoiser: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_denoiser("dit", 4)
    original = load(folder).fingerprint
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert load(tmp_path / "elsewhere" / "copy").fingerprint == original
    assert load(folder, exclude=["*.to_q"]).fingerprint != original
    write_json(folder / SUBJECT_FILE, "subject", {"conditions": [0], "null_condition": None, "extractor": None})
    assert load(folder).fingerprint != original
    subject = load(tmp_path / "elsewhere" / "copy")
    subject.denoiser.pos_embed.proj.weight.data[0, 0, 0, 0] += 1
    assert subject.fingerprint != original


# -- what does not load ------------------------------------------------------------------------------------------------------------------


def test_unknown_names_say_what_may_be_passed(tmp_path: Path) -> None:
    assert "unknown subject 'mnist-dot': no such folder; pass a shipped name (mnist-dit, mnist-unet, digits-sd, digits-mmdit)" in refusal(
        "mnist-dot"
    )
    assert "no such folder" in refusal(tmp_path / "absent")
    assert "neither model_index.json nor config.json" in refusal(tmp_path)


class Hub:
    """The hub's client with one repository, or without a network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path | None, *, online: bool = True) -> None:
        self.folder, self.online, self.patterns = folder, online, None
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda _, hub_id: self.names())
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda hub_id, name: str(self.folder / name))  # type: ignore[operator]
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot)

    def names(self) -> list[str]:
        if not self.online or self.folder is None:
            raise OSError("We couldn't connect\nto the hub")
        return [str(path.relative_to(self.folder)) for path in sorted(self.folder.rglob("*")) if path.is_file()]

    def snapshot(self, hub_id: str, *, allow_patterns: list[str] | None = None, local_files_only: bool = False) -> str:
        if self.folder is None or (not self.online and not local_files_only):
            raise OSError("We couldn't connect\nto the hub")
        self.patterns = allow_patterns
        return str(self.folder)


def test_a_hub_id_offline_says_how_to_get_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, None)
    message = refusal("someone/model")
    assert "'someone/model'" in message and "hf download someone/model --local-dir FOLDER" in message


@pytest.mark.parametrize("online", [True, False])
def test_a_hub_id_that_is_there_loads_from_its_snapshot(
    online: bool, make_denoiser: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_denoiser("unet")
    Hub(monkeypatch, folder, online=online)
    assert load("someone/model").folder == folder


def test_only_what_is_loaded_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd"))
    wanted = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    (folder / "unet" / "onnx").mkdir()
    for stray in (
        "sd.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "unet/model.ckpt",
        "unet/onnx/a.onnx",
        ".gitattributes",
        "unet/.cache",
    ):
        (folder / stray).touch()
    hub = Hub(monkeypatch, folder)
    load("someone/model")
    assert set(hub.patterns or ()) == wanted


def test_a_denoiser_without_a_scheduler(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("unet")
    (folder / "scheduler_config.json").unlink()
    assert refusal(folder).startswith(f"{folder}: a bare denoiser needs its scheduler_config.json")


@pytest.mark.parametrize(
    "file, text, culprit",
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "field '_class_name'"),
        ("config.json", "{}", "field '_class_name' is None"),
        ("config.json", '{"_class_name": "NoSuchModel"}', "field '_class_name' is 'NoSuchModel'"),
        ("config.json", '{"_class_name": "DDIMScheduler"}', "field '_class_name' is 'DDIMScheduler'"),
        ("config.json", '{"_class_name": "utils"}', "field '_class_name' is 'utils'"),
        ("scheduler_config.json", "{", "scheduler_config.json"),
        ("scheduler_config.json", "[]", "scheduler_config.json"),
        ("scheduler_config.json", "{}", "field '_class_name' is None"),
        ("scheduler_config.json", '{"_class_name": "NoSuchScheduler"}', "field '_class_name' is 'NoSuchScheduler'"),
        ("scheduler_config.json", '{"_class_name": "DDIMScheduler", "beta_schedule": "wavy"}', "diffusers cannot load it"),
        ("diffusion_pytorch_model.safetensors", "", "diffusers cannot load it"),
        (SUBJECT_FILE, "{}", "field 'kind'"),
    ],
)
def test_damaged_files_of_a_denoiser(make_denoiser: Callable[..., Path], file: str, text: str, culprit: str) -> None:
    folder = make_denoiser("unet")
    (folder / file).write_text(text)
    message = refusal(folder)
    assert str(folder) in message and culprit in message


def test_cut_weights_and_missing_weights(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("unet")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "diffusers cannot load it" in refusal(folder)
    weights.unlink()
    assert "diffusers cannot load it" in refusal(folder)


def test_weights_with_nan(make_denoiser: Callable[..., Path]) -> None:
    folder = make_denoiser("dit", 4)
    subject = load(folder)
    subject.denoiser.pos_embed.proj.weight.data[0, 0, 0, 0] = float("nan")
    subject.denoiser.save_pretrained(folder)
    assert "layer pos_embed.proj: its weight holds NaN or infinity" in refusal(folder)


@pytest.mark.parametrize(
    "text, culprit",
    [
        ("{", "not valid JSON"),
        ("[]", "holds no JSON object"),
        ("[" * 100_000, "nested too deep"),
        ("{}", "field '_class_name' is None, which is no diffusers pipeline"),
        ('{"_class_name": "UNet2DModel"}', "which is no diffusers pipeline"),
        ('{"_class_name": ["mine", "MyPipeline"]}', "which is no diffusers pipeline"),
        (
            '{"_class_name": "DDIMPipeline", "../vae": ["diffusers", "UNet2DModel"]}',
            "a component '../vae', which is no name of a folder in it",
        ),
        ('{"_class_name": "DDIMPipeline", "/etc": ["diffusers", "UNet2DModel"]}', "a component '/etc'"),
        ('{"_class_name": "DDIMPipeline", "unet": ["mine", "UNet2DModel"]}', "the unet comes from 'mine', code that sedaq does not run"),
        ('{"_class_name": "DDIMPipeline", "unet": ["../mine", "UNet2DModel"]}', "code that sedaq does not run"),
        ('{"_class_name": "DDIMPipeline", "vae": ["diffusers", "VAE"]}', "vae: is named in model_index.json and missing"),
    ],
)
def test_damaged_pipelines(unconditional_pipeline: Path, text: str, culprit: str) -> None:
    (unconditional_pipeline / "model_index.json").write_text(text)
    message = refusal(unconditional_pipeline)
    assert str(unconditional_pipeline) in message and culprit in message


def test_a_pipeline_without_its_denoiser(unconditional_pipeline: Path) -> None:
    shutil.rmtree(unconditional_pipeline / "unet")
    assert f"{unconditional_pipeline / 'unet'}: is named in model_index.json and missing" in refusal(unconditional_pipeline)


@pytest.mark.parametrize("component", ["", "unet"])
def test_an_already_quantized_folder(unconditional_pipeline: Path, component: str) -> None:
    path = unconditional_pipeline / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "sedaq"}}))
    folder = unconditional_pipeline / component
    assert refusal(folder).endswith("already quantized; pass the full-precision folder that it was made from")


def test_functions_that_do_not_work(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PYTHON_SUBJECT)
    assert "no such file; pass FILE.py:FUNCTION" in refusal(tmp_path / "absent.py:make")
    assert "has no function 'absent'" in refusal(f"{tmp_path / 'own.py'}:absent")
    assert "returned int; it must return a sedaq.Subject" in refusal(f"{tmp_path / 'own.py'}:other")
    assert "`exclude` 7: no Linear or Conv layer" in refusal(f"{tmp_path / 'own.py'}:make", exclude=["7"])
    (tmp_path / "broken.py").write_text("def make(:\n")
    assert "broken.py" in refusal(f"{tmp_path / 'broken.py'}:make")


def test_a_device_that_is_not_there() -> None:
    assert refusal("mnist-dit", device="abacus").startswith("`device` abacus: ")


@pytest.mark.parametrize("of", ["denoiser", "pipeline", "python"])
def test_prompts_for_a_subject_that_takes_none(make_denoiser, class_pipeline: Path, tmp_path: Path, of: str) -> None:
    (tmp_path / "own.py").write_text(PYTHON_SUBJECT)
    subject = {"denoiser": make_denoiser("unet"), "pipeline": class_pipeline, "python": f"{tmp_path / 'own.py'}:make"}[of]
    assert "takes no prompts" in refusal(subject, prompts=["a cat"])


def test_code_imports_what_lies_beside_it_now_and_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    (tmp_path / "beside_it.py").write_text("WIDTH = 4\n")
    (tmp_path / "later_beside_it.py").write_text("NAME = 'mine'\n")
    (tmp_path / "with_imports.py").write_text(
        "import torch\nfrom beside_it import WIDTH\nfrom sedaq import Subject\n"
        "def make():\n    from later_beside_it import NAME\n    return Subject(torch.nn.Linear(WIDTH, 4), sample=None, name=NAME)\n"
    )
    assert load(f"{tmp_path / 'with_imports.py'}:make").name == "mine"


def test_code_without_its_function(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PYTHON_SUBJECT)
    assert "own.py:FUNCTION, with a function that returns a sedaq.Subject" in refusal(tmp_path / "own.py")
