"""Models that compute in 16 bits: what they are, and what is encoded of them, is as in float32."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sedaq import Budget, InputError, Run, SamplingConfig, evaluate, load, uniform_plan
from sedaq.models.loading import SHIPPED_FOLDER
from sedaq.models.subject import Subject


@pytest.fixture(scope="module", params=["mnist-dit", "digits-sd"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_model_in_16_bits_is_the_same_model(name: str) -> None:
    whole, half = load(name), load(name, dtype="bfloat16")
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.bfloat16}
    assert half.fingerprint == whole.fingerprint and half.tensor_specs == whole.tensor_specs
    for layer in whole.layers:
        assert torch.equal(half.weight(layer.name), whole.weight(layer.name)), layer.name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_its_images_differ_by_rounding_alone(name: str, dtype: str) -> None:
    sampling = SamplingConfig(steps=4)
    whole = load(name).sample(sampling, seed=0, n_images=2)
    half = load(name, dtype=dtype).sample(SamplingConfig(steps=4, dtype=dtype), seed=0, n_images=2)
    assert half.dtype == torch.float32
    mse = (half - whole).square().mean().item()
    assert 0 < mse < 1e-3, "30 dB"


def test_the_dtype_is_part_of_what_images_depend_on() -> None:
    assert SamplingConfig(dtype="bfloat16").identity == {"dtype": "bfloat16"}
    assert SamplingConfig(dtype="float32").identity == SamplingConfig().identity == {}


def begun(folder: Path) -> Run:
    sampling = SamplingConfig(steps=2, dtype="bfloat16")
    return Run(folder / "run", "mnist-dit", sampling=sampling, images=8, calibration_images=8, calibration_steps=2)


def test_a_run_keeps_its_dtype(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run._opened.write()
    opened = Run(tmp_path / "run")
    assert opened.sampling.dtype == "bfloat16" and opened.subject.denoiser.dtype == torch.bfloat16
    with pytest.raises(InputError, match="was begun with dtype = 'bfloat16', not 'float32'"):
        Run(tmp_path / "run", sampling=SamplingConfig(dtype="float32"))


def test_tensors_that_stay_are_written_as_they_were(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.apply(uniform_plan(run.subject, Budget(bits=2.0)), tmp_path / "out")
    file = "diffusion_pytorch_model.safetensors"
    before, after = load_file(SHIPPED_FOLDER / "mnist-dit" / file), load_file(tmp_path / "out" / file)
    kept = before.keys() & after.keys()
    assert kept and all(torch.equal(before[tensor], after[tensor]) for tensor in kept)
    measured = evaluate(tmp_path / "out", images=8, sampling=SamplingConfig(steps=2, dtype="bfloat16"))
    assert measured.metrics["fid"]["value"] > 0


def test_wrong_dtypes() -> None:
    with pytest.raises(InputError, match="`dtype`: got 'int8'; choose one of float32, bfloat16, float16"):
        SamplingConfig(dtype="int8")
    with pytest.raises(InputError, match="`dtype`: subject mnist-dit computes in float32; load it in float16"):
        load("mnist-dit").sample(SamplingConfig(steps=2, dtype="float16"), seed=0, n_images=1)
    own = Subject(load("mnist-dit").denoiser, sample=lambda **_: torch.zeros(1, 1, 4, 4), name="own")
    with pytest.raises(InputError, match="computes in what its sample function chooses; leave `dtype` out"):
        own.sample(SamplingConfig(dtype="float16"), seed=0, n_images=1)
    with pytest.raises(InputError, match="`dtype`: got 'half'"):
        load("mnist-dit", dtype="half")


def test_weights_that_cannot_be_read_in_parts(tmp_path: Path) -> None:
    whole = load("mnist-dit")
    whole.denoiser.save_pretrained(tmp_path, safe_serialization=False)
    for file in ("scheduler_config.json", "sedaq_subject.json"):
        shutil.copy(SHIPPED_FOLDER / "mnist-dit" / file, tmp_path)
    with pytest.raises(InputError, match="holds no .safetensors weights, which alone can be read in parts"):
        load(tmp_path, dtype="bfloat16")
