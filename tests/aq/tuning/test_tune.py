"""Tuning: no result is worse than what came in, it repeats, and it goes on where it was killed."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest
import torch

from sedaq.aq.encoder.encoder import encode
from sedaq.aq.export.apply import apply
from sedaq.aq.formats import Format
from sedaq.aq.plans.plan import Plan
from sedaq.aq.tuning import run as tuning_run
from sedaq.aq.tuning import tune as tune_module
from sedaq.aq.tuning.run import TuningRun
from sedaq.aq.tuning.settings import TuneConfig
from sedaq.aq.tuning.student import Student
from sedaq.aq.tuning.trajectories import Trajectories
from sedaq.aq.tuning.tune import tune
from sedaq.aq.tuning.tuned import Tuned
from sedaq.errors import InputError
from sedaq.models.loading import load
from sedaq.models.subject import Subject
from sedaq.storage import load_tensors, save_tensors

CPU = torch.device("cpu")
FALLEN_BACK = "nothing was better, once stored, than what came in, which is handed out"


def lost(subject: Subject, tuned: Tuned, settings: TuneConfig) -> float:
    """The loss of what would be stored over the mean square of the teacher's answers, whose buffer is made anew."""
    return (
        held_out_loss(subject, tuned, settings) / Trajectories(subject, settings).held_out.tensors["output"].float().square().mean().item()
    )


def held_out_loss(subject: Subject, tuned: Tuned, settings: TuneConfig) -> float:
    """From what would be stored, by the teacher's modules with other weights, and its buffer made anew."""
    buffer = Trajectories(subject, settings).held_out
    call, target = buffer.batch(torch.arange(len(buffer)), CPU)
    with tuned.installed(subject), torch.no_grad():
        return (subject.denoiser(**call).sample - target).square().mean().item()


def test_tuning_lowers_the_held_out_loss_of_what_is_stored(subject, encodings, small, equal):
    before = {name: parameter.clone() for name, parameter in subject.denoiser.state_dict().items()}
    originals = {name: {k: t.clone() for k, t in encoding.tensors.items()} for name, encoding in encodings.items()}
    tuned = tune(subject, encodings, small)
    assert [step for step, _ in tuned.losses] == [0, 10, 20, 30] and tuned.ending == ""
    start, best = tuned.losses[0][1], min(loss for _, loss in tuned.losses)
    assert tuned.best[1] == best
    assert held_out_loss(subject, Tuned(encodings, {}), small) == pytest.approx(start, rel=1e-3)
    assert held_out_loss(subject, tuned, small) == pytest.approx(best, rel=0.02)
    assert best < 0.85 * start
    assert tuned.lost == pytest.approx(lost(subject, tuned, small), rel=1e-3)
    assert {name: encoding.format for name, encoding in tuned.encodings.items()} == {
        name: encoding.format for name, encoding in encodings.items()
    }
    for name, encoding in encodings.items():
        assert encoding.format.kind == "additive" or equal(tuned.encodings[name], encoding)
    # Neither the teacher nor what was passed in has changed.
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.denoiser.state_dict().items())
    assert not subject.denoiser.training and not any(p.requires_grad or p.grad is not None for p in subject.denoiser.parameters())
    assert not subject.denoiser._forward_hooks
    assert all(torch.equal(tensor, originals[name][k]) for name, encoding in encodings.items() for k, tensor in encoding.tensors.items())


def test_what_is_installed_is_what_the_file_has(subject, encodings):
    name, parameter = next((name, p) for name, p in subject.denoiser.named_parameters() if name.endswith("bias"))
    dtype = subject.tensor_specs[name][0]
    wanted = parameter + 1 / 3
    assert dtype.itemsize == 2 and not torch.equal(wanted, wanted.to(dtype).float())
    before = parameter.clone()
    with Tuned(encodings, {name: wanted}).installed(subject):
        assert torch.equal(parameter, wanted.to(dtype).float())
    assert torch.equal(parameter, before)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": (("layers", 1.0), ("blocks", 1.0), ("whole", 2.0))},
        {"code_step": "none"},
        {"code_step": "straight-through", "code_reach": 0.3},
        {"optimizer_reset": "none", "code_reach": 0.3, "trust_ratio": 0.1},
        {"optimizer_reset": "full", "code_reach": 0.3, "trust_ratio": 0.1},
        {"order": "consecutive"},
        {"weighting": "sensitivity"},
        {"weighting": "min-snr"},
        {"ema_decay": 0.8},
        {"refresh_every": 10},
        {"gradient_checkpointing": True},
    ],
    ids=lambda changes: ",".join(map(str, changes.values())),
)
def test_every_choice_lowers_the_loss_and_repeats(changes, subject, encodings, small, alike):
    settings = dataclasses.replace(small, **changes)
    tuned = tune(subject, encodings, settings)
    assert tuned.best[1] < 0.95 * tuned.losses[0][1]
    assert alike(tuned, tune(subject, encodings, settings))


def test_gradient_checkpointing_changes_no_gradient(blocks, small):
    """The weights that modules hold during the backward pass are those of the forward pass."""
    encodings = {layer.name: encode(blocks.weight(layer.name), Format.parse("1x4g4")) for layer in blocks.layers}
    gradients = []
    for checkpointing in (False, True):
        settings = dataclasses.replace(small, gradient_checkpointing=checkpointing, learning_rate=0.0, code_step="none")
        run = TuningRun(blocks, Student(blocks, encodings), Trajectories(blocks, settings), settings)
        run.tune_step(1)
        gradients.append({name: parameter.grad for name, parameter in run.optimizer.parameters.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_a_denoiser_that_cannot_checkpoint_says_so(subject, encodings, small, monkeypatch):
    monkeypatch.setattr(type(subject.denoiser), "_supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match="cannot do gradient checkpointing"):
        tune(subject, encodings, dataclasses.replace(small, gradient_checkpointing=True))


def test_codes_change_and_provenance_says_that_it_was_tuned(subject, encodings, small):
    settings = dataclasses.replace(small, steps=10, code_every=2, code_share=0.05, trust_ratio=0.2, code_reach=0.3)
    tuned = tune(subject, encodings, settings)
    additive = {name: encoding for name, encoding in tuned.encodings.items() if encoding.format.kind == "additive"}
    assert any(not torch.equal(encoding.tensors["codes"], encodings[name].tensors["codes"]) for name, encoding in additive.items())
    assert all(encoding.provenance["tune_steps"] == 10 for encoding in additive.values())


def test_codes_stay_while_the_rest_settles(subject, encodings, small):
    settings = dataclasses.replace(small, steps=10, code_until=0.5, code_share=1.0, trust_ratio=0.5, code_reach=0.3)
    run = TuningRun(subject, Student(subject, encodings), Trajectories(subject, settings), settings)
    codes = []
    for step in range(1, 11):
        run.tune_step(step)
        codes.append([layer.codes.clone() for layer in run.student.layers.values()])
    moved = [
        any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) for before, after in zip(codes, codes[1:], strict=False)
    ]
    assert any(moved[:4]) and not any(moved[4:])


def test_tuning_depends_on_its_seed(subject, encodings, small):
    settings = dataclasses.replace(small, steps=6, check_every=3, code_every=2)
    assert tune(subject, encodings, settings).losses != tune(subject, encodings, dataclasses.replace(settings, seed=1)).losses


# -- ends --------------------------------------------------------------------------------------------------------------------------------


def test_no_steps_return_what_came_in(subject, encodings, small):
    tuned = tune(subject, encodings, dataclasses.replace(small, steps=0))
    assert tuned.others == {} and tuned.losses == [] and tuned.ending == "0 steps were asked for"
    assert all(tuned.encodings[name] is encodings[name] for name in encodings)


def test_nothing_to_tune_returns_what_came_in(subject, small):
    as_is = {layer.name: encode(subject.weight(layer.name), Format.parse("asis")) for layer in subject.layers}
    for name, module in subject.denoiser.named_modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
        if name and not any(name.startswith(layer.name) or layer.name.startswith(name) for layer in subject.layers):
            for key in list(module._parameters):
                module._parameters[key] = None
    for key in [key for key, parameter in subject.denoiser.named_parameters() if not key.endswith(".weight")]:
        path, _, name = key.rpartition(".")
        subject.denoiser.get_submodule(path)._parameters[name] = None
    tuned = tune(subject, as_is, small)
    assert tuned.losses == [] and tuned.ending == "no layer has codebooks and nothing else can be tuned"
    assert all(tuned.encodings[name] is as_is[name] for name in as_is)


def test_layers_that_are_excluded_are_left_alone(dit_folder, encodings, small):
    excluded = load(dit_folder, exclude=("*.attn1.*",))
    some = {layer.name: encodings[layer.name] for layer in excluded.layers}
    tuned = tune(excluded, some, small)
    assert tuned.others and not [name for name in tuned.others if name.endswith(".weight") and ".attn1." in name]
    assert tuned.best[1] < tuned.losses[0][1]


def test_what_is_worse_once_stored_is_not_handed_out(subject, encodings, small, monkeypatch):
    real = TuningRun.held_out_loss_of
    monkeypatch.setattr(TuningRun, "held_out_loss_of", lambda self, student: real(self, student) + (student is not self.student))
    tuned = tune(subject, encodings, small)
    assert all(tuned.encodings[name] is encodings[name] for name in encodings) and tuned.others == {}
    assert tuned.ending == FALLEN_BACK and len(tuned.losses) == 4
    assert tuned.lost == pytest.approx(lost(subject, tuned, small), rel=1e-3)


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_a_diverging_rate_ends_early_and_returns_the_best(rate, subject, encodings, small, equal):
    settings = dataclasses.replace(small, steps=40, learning_rate=rate, check_every=2)
    tuned = tune(subject, encodings, settings)
    assert tuned.losses[-1][0] < 40
    assert tuned.ending == f"the loss diverged at step {tuned.losses[-1][0]}; what was best before was kept; {FALLEN_BACK}"
    assert all(not math.isfinite(loss) or loss > tuned.losses[0][1] for _, loss in tuned.losses[1:])
    assert tuned.best == tuned.losses[0]
    assert all(equal(tuned.encodings[name], encodings[name]) for name in encodings), "the start was the best, so it is what comes back"
    parameters = dict(subject.denoiser.named_parameters())
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in tuned.others.items())


def test_patience_ends_a_tuning_that_gains_nothing(subject, encodings, small, tmp_path):
    settings = dataclasses.replace(small, steps=40, learning_rate=0.0, code_step="none", check_every=4, patience=3)
    tuned = tune(subject, encodings, settings)
    assert [step for step, _ in tuned.losses] == [0, 4, 8, 12]
    assert tuned.ending == f"no better after 3 looks at the held-out loss; ended at step 12; {FALLEN_BACK}"
    for _ in range(2):  # begun again when it was done
        again = tune(subject, encodings, settings, folder=tmp_path)
        assert again.losses == tuned.losses and again.ending == tuned.ending


@pytest.mark.parametrize("harm", ["cut", "of another tuning", "resealed without a part"])
def test_a_tuning_whose_state_is_damaged_begins_anew(harm, subject, encodings, small, tmp_path, caplog):
    settings = dataclasses.replace(small, steps=8, check_every=4)
    tuned = tune(subject, encodings, settings, folder=tmp_path)
    (path,) = tmp_path.glob("state-*.safetensors")
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif harm == "of another tuning":
        tune(subject, encodings, dataclasses.replace(settings, learning_rate=1e-3), folder=tmp_path / "other", buffer_folder=tmp_path)
        (other,) = (tmp_path / "other").glob("state-*.safetensors")
        other.replace(path)
    else:
        tensors, metadata = load_tensors(path, "tuning")
        tensors.pop(next(name for name in tensors if name.startswith("adam:")))
        save_tensors(path, "tuning", tensors, metadata)
    assert tune(subject, encodings, settings, folder=tmp_path).losses == tuned.losses
    assert f"{path}: damaged; the tuning begins anew" in caplog.text


def test_the_better_of_parameters_and_their_running_mean_is_remembered(subject, encodings, small):
    settings = dataclasses.replace(small, ema_decay=0.9)
    run = TuningRun(subject, Student(subject, encodings), Trajectories(subject, settings), settings)
    start = run.look()
    run.step = 1
    for parameter in run.optimizer.parameters.values():
        parameter.data.mul_(1.5)  # the mean stays where it was
    assert run.held_out_loss() > start
    for name, mean in run.means.items():
        mean.lerp_(run.optimizer.parameters[name].detach(), 0.01)
    wanted = {name: mean.clone() for name, mean in run.means.items()}
    run.best_loss = math.inf
    moved = {name: parameter.detach().clone() for name, parameter in run.optimizer.parameters.items()}
    assert run.look() < run.held_out_loss()
    assert all(torch.equal(run.best[name], mean) for name, mean in wanted.items())
    assert all(torch.equal(parameter, moved[name]) for name, parameter in run.optimizer.parameters.items()), "tuning goes on from them"


def test_the_running_mean_is_of_all_steps(subject, encodings, small):
    settings = dataclasses.replace(small, ema_decay=0.5, steps=3)
    run = TuningRun(subject, Student(subject, encodings), Trajectories(subject, settings), settings)
    path = [{name: p.detach().clone() for name, p in run.optimizer.parameters.items()}]
    for step in (1, 2, 3):
        run.tune_step(step)
        path.append({name: p.detach().clone() for name, p in run.optimizer.parameters.items()})
    for name, mean in run.means.items():
        expected = sum(w * at[name] for w, at in zip((0.125, 0.125, 0.25, 0.5), path, strict=True))
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4)


def test_minutes_become_steps(subject, encodings, small, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tuning_run, "clock", lambda device: clock[0])
    original = TuningRun.tune_step

    def slow(self, step):
        clock[0] += 2.0
        original(self, step)

    monkeypatch.setattr(TuningRun, "tune_step", slow)
    timed = tune(subject, encodings, dataclasses.replace(small, minutes=0.5, check_every=5))
    assert timed.losses[-1][0] == 15  # of two seconds each
    assert all(e.provenance["tune_steps"] == 15 for e in timed.encodings.values() if e.format.kind == "additive")
    counted = tune(subject, encodings, dataclasses.replace(small, steps=15, check_every=5))
    assert counted.losses == timed.losses, "the steps that time was measured by have left no trace"


@pytest.mark.parametrize(("refresh_every", "steps"), [(0, 11), (5, 6)])
def test_minutes_count_looks_and_refreshes(refresh_every, steps, subject, encodings, small, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tuning_run, "clock", lambda device: clock[0])

    def taking(seconds, method):
        def slow(*arguments):
            clock[0] += seconds
            return method(*arguments)

        return slow

    monkeypatch.setattr(TuningRun, "tune_step", taking(2.0, TuningRun.tune_step))
    monkeypatch.setattr(TuningRun, "held_out_loss", taking(3.0, TuningRun.held_out_loss))  # of four images
    timed = tune(subject, encodings, dataclasses.replace(small, minutes=0.5, check_every=5, refresh_every=refresh_every))
    # Half a minute has 30 / (2 + 3 / 5) steps; or 30 / (2 + 3 / 5 + 12 / 5), for student and teacher answer eight images.
    assert timed.losses[-1][0] == steps


def test_a_minute_is_a_minute(subject, encodings, small):
    began = time.perf_counter()
    tuned = tune(subject, encodings, dataclasses.replace(small, minutes=0.05))
    assert tuned.losses[-1][0] > 5
    assert time.perf_counter() - began < 20


# -- plans and folders -------------------------------------------------------------------------------------------------------------------


def test_codes_that_do_not_fit_the_model(subject, blocks, encodings, small):
    first = subject.layers[0].name
    with pytest.raises(InputError, match=f"layer {first} .*has no encoding"):
        tune(subject, {name: e for name, e in encodings.items() if name != first}, small)
    with pytest.raises(InputError, match=r"codes name layer 'transformer_blocks\.[12]"):
        tune(subject, {layer.name: encode(blocks.weight(layer.name), Format.parse("1x3g4")) for layer in blocks.layers}, small)
    wrong = encode(torch.randn(8, 8), Format.parse("1x3g4"))
    with pytest.raises(InputError, match=rf"codes of layer {first} are of shape \(8, 8\), the model's weight is of .*pass the model"):
        tune(subject, {**encodings, first: wrong}, small)


def test_a_tuned_folder_has_the_size_of_the_plan(subject, mixed_plan, store, small, tmp_path):
    tuned = apply(subject, mixed_plan, store, tmp_path / "tuned", tune=dataclasses.replace(small, steps=4))[""]
    assert len(tuned.losses) > 1
    plan = Plan.load(tmp_path / "tuned" / "quantization_plan.json")
    assert (tmp_path / "tuned" / "diffusion_pytorch_model.safetensors").stat().st_size == plan.size_bytes


def test_the_same_tuning_is_read_back(subject, mixed_plan, store, encodings, small, tmp_path, monkeypatch):
    settings = dataclasses.replace(small, steps=3)
    first = tune(subject, encodings, settings, keep_in=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tune_module, "_tuned", lambda *_: pytest.fail("tuned again"))
        again = tune(subject, encodings, settings, keep_in=tmp_path)
    assert (again.losses, again.ending, again.lost) == (
        first.losses,
        first.ending,
        first.lost,
    ) and again.others.keys() == first.others.keys()
    assert all(torch.equal(again.others[name], tensor) for name, tensor in first.others.items())
    for name, encoding in first.encodings.items():
        other = again.encodings[name]
        assert (other.format, other.shape, other.provenance) == (encoding.format, encoding.shape, encoding.provenance)
        assert all(torch.equal(other.tensors[key], tensor) for key, tensor in encoding.tensors.items())
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    repeated = tune(subject, encodings, settings, keep_in=tmp_path)
    assert repeated.losses == first.losses, "a damaged file is made again"
    tune(subject, encodings, dataclasses.replace(settings, seed=1), keep_in=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
