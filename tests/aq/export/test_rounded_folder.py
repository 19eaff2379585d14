"""Folders whose layers round their inputs: bytes, loading, equality with what was tuned, real and simulated arithmetic."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sedaq.aq.activations.calibration import ranged
from sedaq.aq.activations.quantizer import SCHEMES, Activation, attached
from sedaq.aq.export.apply import PLAN_FILE, apply, assemble
from sedaq.aq.formats import AS_IS
from sedaq.aq.modules.layers import densify, quantized_modules
from sedaq.aq.plans.plan import Plan
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.tune import tune
from sedaq.models.folders import WEIGHTS_FILE

SHORT = TuneConfig(steps=8, batch_size=16, n_images=16, sampling_steps=4, check_every=4)
QUESTION = {"timestep": torch.tensor([5, 95]), "class_labels": torch.tensor([0, 3])}


@pytest.fixture
def rounded_plan(subject, mixed_plan) -> Plan:
    """Every scheme in turn, also on layers that stay as they are."""
    schemes = list(SCHEMES)
    choices = {layer.name: Activation(8 if i % 3 else 6, schemes[i % 4]) for i, layer in enumerate(subject.layers)}
    return mixed_plan.with_activations(subject, choices)


def answer(model) -> torch.Tensor:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(x, **QUESTION).sample


def load(folder: Path):
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel.from_pretrained(folder)


def test_layers_as_they_are_keep_their_inputs_and_bytes_are_counted(subject, mixed_plan, rounded_plan):
    as_is = {name for name, format in mixed_plan.formats.items() if format == AS_IS}
    assert as_is and not as_is & set(rounded_plan.activations)
    assert len(rounded_plan.activations) == len(mixed_plan.formats) - len(as_is)
    assert rounded_plan.size_bytes > mixed_plan.size_bytes and rounded_plan.bits_per_weight == mixed_plan.bits_per_weight
    assert rounded_plan.hash != mixed_plan.hash
    rounded_plan.validate(subject)
    dynamic = {name: Activation(8) for name in rounded_plan.activations}
    assert mixed_plan.with_activations(subject, dynamic).size_bytes == mixed_plan.size_bytes
    measured = dataclasses.replace(mixed_plan, measured={"fid": 1.0}, predicted={"fid": 1.0}, budget={"bits": 3.0})
    assert measured.with_activations(subject, dynamic).measured is None and measured.with_activations(subject, dynamic).budget == {
        "bits": 3.0
    }


def test_a_rounded_folder_answers_as_the_rounded_model_does(subject, rounded_plan, store, tmp_path, monkeypatch):
    monkeypatch.setenv("SEDAQ_KERNEL", "reference")
    apply(subject, rounded_plan, store, tmp_path / "q")
    assert (tmp_path / "q" / WEIGHTS_FILE).stat().st_size == rounded_plan.size_bytes
    assert Plan.load(tmp_path / "q" / PLAN_FILE).activations == rounded_plan.activations
    weights = {name: e.dequantize() for name, e in assemble(subject, rounded_plan, store).items()}
    inputs = ranged(subject, rounded_plan.activations, store.seed)
    assert inputs is not None
    with subject.weights_replaced(weights):
        unrounded = answer(subject.denoiser)
        with attached(subject.denoiser, *inputs.modules(subject.denoiser)):
            wanted = answer(subject.denoiser)
    model = load(tmp_path / "q")
    # Real arithmetic rounds a convolution's windows where this rounds places.
    found = answer(model)
    assert (found - wanted).norm() < 0.1 * (wanted - unrounded).norm()
    densify(model)
    torch.testing.assert_close(answer(model), wanted, atol=1e-5, rtol=1e-5)


def test_real_arithmetic_where_the_scheme_is_the_kernels(subject, mixed_plan, store, tmp_path):
    plan = mixed_plan.with_activations(subject, {layer.name: Activation(8) for layer in subject.layers})
    apply(subject, plan, store, tmp_path / "q")
    model = load(tmp_path / "q")
    layer = next(iter(quantized_modules(model).values()))
    assert layer.multiplied(torch.ones(1))[1] == "a8"
    simulated = answer(model)
    for module in quantized_modules(model).values():
        module.activation = None
        module.precision = "a8"
    assert torch.equal(answer(model), simulated), "the class of 8-bit kernels, whichever way it is asked for"


def test_saving_a_loaded_model_and_loading_that(subject, rounded_plan, store, tmp_path, monkeypatch):
    monkeypatch.setenv("SEDAQ_KERNEL", "reference")
    apply(subject, rounded_plan, store, tmp_path / "q")
    first = load(tmp_path / "q")
    first.save_pretrained(tmp_path / "again")
    assert torch.equal(answer(load(tmp_path / "again")), answer(first))
    a, b = (safetensors.torch.load_file(tmp_path / name / WEIGHTS_FILE) for name in ("q", "again"))
    assert a.keys() == b.keys() and any(name.endswith("activation.ranges") for name in a)
    configs = [json.loads((tmp_path / name / "config.json").read_text())["quantization_config"] for name in ("q", "again")]
    assert configs[0] == configs[1] and len(configs[0]["timestep_edges"]) == 7


def test_ranges_survive_a_cast(subject, rounded_plan, store, tmp_path):
    from diffusers import DiTTransformer2DModel

    apply(subject, rounded_plan, store, tmp_path / "q")
    model = DiTTransformer2DModel.from_pretrained(tmp_path / "q", torch_dtype=torch.bfloat16)
    stored = safetensors.torch.load_file(tmp_path / "q" / WEIGHTS_FILE)
    state = model.state_dict()
    ranges = [name for name in stored if ".activation." in name]
    with torch.inference_mode():
        answered = model(torch.randn(2, 1, 8, 8).bfloat16(), **QUESTION).sample
    assert answered.dtype == torch.bfloat16 and torch.isfinite(answered).all()
    assert ranges and all(torch.equal(state[name], stored[name]) and state[name].dtype == torch.float32 for name in ranges)


# -- tuned -------------------------------------------------------------------------------------------------------------------------------


def test_tuning_learns_ranges_and_what_is_stored_is_what_was_judged(subject, rounded_plan, store, tmp_path, monkeypatch):
    monkeypatch.setenv("SEDAQ_KERNEL", "reference")
    before = ranged(subject, rounded_plan.activations, store.seed)
    tuned = apply(subject, rounded_plan, store, tmp_path / "q", tune=SHORT)[""]
    assert tuned.best[1] < tuned.losses[0][1]
    assert tuned.inputs is not None and tuned.inputs.choices == before.choices
    static = [name for name, choice in rounded_plan.activations.items() if choice.is_static]
    assert set(tuned.inputs.tensors) == set(static)
    assert all(not torch.equal(tuned.inputs.tensors[name]["ranges"], before.tensors[name]["ranges"]) for name in static)
    model = load(tmp_path / "q")
    densify(model)
    student = tuned.stored_in(subject)
    student.assemble()
    torch.testing.assert_close(answer(model), answer(student.denoiser), atol=2e-4, rtol=2e-3)


def test_a_rounded_tuning_repeats_and_depends_on_how_inputs_are_rounded(subject, rounded_plan, store, tmp_path):
    encodings = assemble(subject, rounded_plan, store)
    inputs = ranged(subject, rounded_plan.activations, store.seed)
    first = tune(subject, encodings, SHORT, inputs=inputs, folder=tmp_path)
    again = tune(subject, encodings, SHORT, inputs=inputs)
    assert first.losses == again.losses
    plain = tune(subject, encodings, SHORT, folder=tmp_path)
    assert plain.losses[0][1] == pytest.approx(first.losses[0][1], rel=0.01) and plain.losses != first.losses and plain.inputs is None
    other = dataclasses.replace(inputs, choices={name: dataclasses.replace(c, bits=4) for name, c in inputs.choices.items()})
    coarse = tune(subject, encodings, SHORT, inputs=other, folder=tmp_path)
    assert coarse.losses[0][1] > max(plain.losses[0][1], first.losses[0][1])


def test_what_a_tuning_needed_is_gone_and_its_way_is_kept(subject, mixed_plan, store, tmp_path):
    from sedaq.storage import read_records

    apply(subject, mixed_plan, store, tmp_path / "q", tune=SHORT, buffer_folder=tmp_path / "buffer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["buffer", "q"]
    record = read_records(store.folder / "tunings.jsonl", "tuning")[-1]
    assert record["name"] == "q" and record["plan_hash"] == mixed_plan.hash
    assert [step for step, _ in record["held_out_losses"]] == [0, 4, 8] and record["settings"]["steps"] == 8 and record["ending"] == ""
