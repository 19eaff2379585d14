"""Checkpoints in one file: what Stable Diffusion 1 and LTX are passed around in gives the very model that it was made of."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from sedaq import InputError, Run, SamplingConfig, load
from sedaq.models import single_files
from sedaq.models.loading import SHIPPED_FOLDER

DIGITS = SHIPPED_FOLDER / "digits-sd"
WEIGHTS = "diffusion_pytorch_model.safetensors"
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
AROUND = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))


def unet_name(name: str) -> str:
    """A tensor of a U-Net with one layer a block, as Stable Diffusion's first publishers call it."""
    path, _, kind = name.rpartition(".")
    if path in AROUND:
        return f"{AROUND[path]}.{kind}"
    if middle := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", path):
        part, number, rest = middle.groups()
        return f"middle_block.{1 if part == 'attentions' else 2 * int(number)}.{RESNET.get(rest, rest)}.{kind}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", path)
    assert found, name
    way, block, part, number, rest = found.groups()
    place = 2 * int(block) + int(number) + (1 if way == "down" else 0)
    if part == "downsamplers":
        return f"input_blocks.{2 * int(block) + 2}.0.op.{kind}"
    if part == "upsamplers":
        return f"output_blocks.{2 * int(block) + 1}.2.conv.{kind}"
    return f"{'input' if way == 'down' else 'output'}_blocks.{place}.{1 if part == 'attentions' else 0}.{RESNET.get(rest, rest)}.{kind}"


def vae_name(name: str) -> str:
    for old, new in (
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", lambda m: "mid.attn_1"),
        (r"group_norm", lambda m: "norm"),
        (r"to_out\.0", lambda m: "proj_out"),
        (r"to_([qkv])", lambda m: m[1]),
        (r"down_blocks\.(\d)\.resnets", lambda m: f"down.{m[1]}.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", lambda m: f"down.{m[1]}.downsample"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{2 - int(m[1])}.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{2 - int(m[1])}.upsample"),
        (r"conv_shortcut", lambda m: "nin_shortcut"),
        (r"conv_norm_out", lambda m: "norm_out"),
    ):
        name = re.sub(old, new, name)
    return name


def checkpoint() -> dict[str, torch.Tensor]:
    """digits-sd in one file, as models were published before diffusers."""
    tensors = {f"model.diffusion_model.{unet_name(name)}": tensor for name, tensor in load_file(DIGITS / "unet" / WEIGHTS).items()}
    for name, tensor in load_file(DIGITS / "vae" / WEIGHTS).items():
        as_convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", vae_name(name))
        tensors[f"first_stage_model.{vae_name(name)}"] = tensor[:, :, None, None] if as_convolution else tensor
    for name, tensor in load_file(DIGITS / "text_encoder/model.safetensors").items():
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def test_names_are_those_of_the_first_publisher() -> None:
    names = checkpoint().keys()
    for known in (
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.1.2.conv.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
    ):
        assert known in names


def test_a_checkpoint_of_a_whole_pipeline(tmp_path: Path) -> None:
    save_file(checkpoint(), tmp_path / "digits.safetensors")
    subject, whole = load(f"{tmp_path / 'digits.safetensors'}:{DIGITS}"), load("digits-sd")
    assert subject.model_fingerprint == whole.model_fingerprint and subject.name == whole.name
    sampling = SamplingConfig(steps=2)
    assert torch.equal(subject.sample(sampling, seed=0, n_images=2), whole.sample(sampling, seed=0, n_images=2))
    assert subject.tensor_specs == whole.tensor_specs, "in the dtype of the file"


def test_a_file_of_the_denoiser_alone(tmp_path: Path) -> None:
    subject, whole = load(f"{DIGITS / 'unet' / WEIGHTS}:{DIGITS}"), load("digits-sd")
    assert subject.model_fingerprint == whole.model_fingerprint
    assert subject.folder is not None and (subject.folder / "vae" / WEIGHTS).samefile(DIGITS / "vae" / WEIGHTS), "others are not copied"
    before = (subject.folder / "unet" / WEIGHTS).stat().st_mtime_ns
    load(f"{DIGITS / 'unet' / WEIGHTS}:{DIGITS}")
    assert (subject.folder / "unet" / WEIGHTS).stat().st_mtime_ns == before, "it is converted once"


def test_a_transformer_under_its_publishers_names(tmp_path: Path) -> None:
    """LTX, whose first names differ by four words and a beginning."""
    torch.manual_seed(0)
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    folder = tmp_path / "ltx"
    model.save_pretrained(folder)
    scheduler.save_pretrained(folder)
    tensors = {}
    for name, tensor in model.state_dict().items():
        for ours, first in (("proj_in", "patchify_proj"), ("time_embed", "adaln_single"), ("norm_q", "q_norm"), ("norm_k", "k_norm")):
            name = name.replace(ours, first)
        tensors[f"model.diffusion_model.{name}"] = tensor.half()
    save_file(tensors, tmp_path / "ltx.safetensors")
    found = single_files.converted(tmp_path / "ltx.safetensors", folder)
    again = diffusers.LTXVideoTransformer3DModel.from_pretrained(found)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name
    assert load_file(found / WEIGHTS)["proj_in.weight"].dtype == torch.float16 and (found / "scheduler_config.json").exists()


def test_a_run_of_a_file_is_opened_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DIGITS / "unet" / WEIGHTS, tmp_path / "unet.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").symlink_to(DIGITS)
    run = Run("run", "unet.safetensors:digits", sampling=SamplingConfig(steps=2), images=8)
    run._opened.write()
    monkeypatch.chdir("/")
    assert Run(tmp_path / "run").subject.fingerprint == run.subject.fingerprint


def _only_a_file(tmp_path: Path) -> str:
    return str(DIGITS / "unet" / WEIGHTS)


def _damaged(tmp_path: Path) -> str:
    (tmp_path / "a.safetensors").write_bytes((DIGITS / "unet" / WEIGHTS).read_bytes()[:1000])
    return f"{tmp_path / 'a.safetensors'}:{DIGITS}"


def _of_another_model(tmp_path: Path) -> str:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    return f"{tmp_path / 'a.safetensors'}:{DIGITS}"


def _half(tmp_path: Path) -> str:
    tensors = load_file(DIGITS / "unet" / WEIGHTS)
    tensors.pop("conv_out.weight")
    save_file(tensors, tmp_path / "a.safetensors")
    return f"{tmp_path / 'a.safetensors'}:{DIGITS}"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_only_a_file, r"is a file; pass .*\.safetensors:FOLDER"),
        (lambda _: f"absent.safetensors:{DIGITS}", "absent.safetensors: no such file"),
        (lambda _: f"{DIGITS / 'unet' / WEIGHTS}:absent", "absent: no such folder"),
        (lambda _: f"{DIGITS / 'unet' / WEIGHTS}:{SHIPPED_FOLDER / 'mnist-dit'}", "reads no single files of DiTTransformer2DModel"),
        (_damaged, "not a whole safetensors file; download it again"),
        (_of_another_model, "check that"),
        (_half, "check that"),
    ],
)
def test_wrong_files(make: Callable[[Path], str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as raised:
        load(make(tmp_path))
    assert "\n" not in str(raised.value)
    assert not any((tmp_path / "cache").rglob("*.safetensors")), "nothing half-written"
