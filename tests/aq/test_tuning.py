"""Tuning: the replay buffer, the two steps, and that no result is worse than what came in."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from sedaq.aq import tuning
from sedaq.aq.apply import apply
from sedaq.aq.encoder import encode
from sedaq.aq.encoding import Encoding
from sedaq.aq.formats import Format
from sedaq.aq.plan import Plan
from sedaq.aq.replay import ReplayBuffer
from sedaq.aq.tuning import TuneSettings, _TunableLayer, tune
from sedaq.errors import InputError
from sedaq.models.subject import Subject

SMALL = TuneSettings(steps=30, batch_size=16, n_images=16, sampling_steps=4, learning_rate=2e-3, check_every=10)


@pytest.fixture
def encodings(subject) -> dict[str, Encoding]:
    """Coarse additive codes, and every seventh layer int8 or as it is."""
    texts = {3: "int8", 6: "asis"}
    return {
        layer.name: encode(subject.weight(layer.name), Format.parse(texts.get(i % 7, ("1x3g4", "1x4g4m", "1x4g4q")[i % 3])))
        for i, layer in enumerate(subject.layers)
    }


def held_out_loss(subject: Subject, tuned: tuning.Tuned, settings: TuneSettings) -> float:
    """From what would be stored, by the teacher's modules with other weights, and its buffer made anew."""
    buffer = ReplayBuffer(subject, n_images=settings.n_images, steps=settings.sampling_steps, seed=settings.seed)
    call, target = buffer.batch(buffer.held_out, torch.device("cpu"))
    parameters = dict(subject.denoiser.named_parameters())
    originals = {name: parameters[name].data for name in tuned.others}
    with subject.weights_replaced({name: encoding.dequantize() for name, encoding in tuned.encodings.items()}):
        for name, tensor in tuned.others.items():
            parameters[name].data = tensor
        try:
            with torch.no_grad():
                return (subject.denoiser(**call).sample - target).square().mean().item()
        finally:
            for name, tensor in originals.items():
                parameters[name].data = tensor


def equal(a: Encoding, b: Encoding) -> bool:
    return (
        a.format == b.format
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(t, b.tensors[name]) for name, t in a.tensors.items())
    )


# -- replay buffer -----------------------------------------------------------------------------------------------------------------------


def test_rows_are_the_denoisers_own_calls_and_answers(subject):
    buffer = ReplayBuffer(subject, n_images=6, steps=3, seed=0)
    rows = torch.cat([buffer.held_out, buffer.tuning])
    assert sorted(rows.tolist()) == list(range(6 * 3)), "every call once, nothing both held out and tuned on"
    call, target = buffer.batch(rows, torch.device("cpu"))
    with torch.no_grad():
        answer = subject.denoiser(**call).sample
    torch.testing.assert_close(answer, target, atol=5e-3, rtol=5e-3)  # kept in float16
    one = next(iter(rows)).reshape(1)
    call, target = buffer.batch(one, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(subject.denoiser(**call).sample, target, atol=5e-3, rtol=5e-3)


def test_the_buffer_covers_all_timesteps_and_repeats(subject):
    first, again, other = (ReplayBuffer(subject, n_images=4, steps=3, seed=seed) for seed in (0, 0, 1))
    timesteps = next(tensor for name, tensor in first.tensors.items() if "time" in name)
    assert len(timesteps.unique()) == 3
    assert first.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in first.tensors.items()) and torch.equal(
        first.tuning, again.tuning
    )
    assert not torch.equal(first.tensors["output"], other.tensors["output"])


def test_a_denoiser_that_is_not_called_cannot_be_tuned():
    subject = Subject(nn.Linear(4, 4), sample=lambda *, n_images, **_: torch.zeros(n_images, 1, 2, 2), name="idle")
    with pytest.raises(InputError, match="did not call the denoiser"):
        ReplayBuffer(subject, n_images=2, steps=1, seed=0)


class _Numbered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: float, scale: float = 2.0) -> torch.Tensor:
        return self.layer(x) * t * scale


def test_numbers_that_differ_between_calls_are_refused():
    """A timestep that comes as a number has no row of its own: the last one would stand for all."""
    denoiser = _Numbered()

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = torch.ones(n_images, 4)
        for t in times:
            x = denoiser(x, t)
        return x.reshape(n_images, 1, 2, 2)

    subject = Subject(denoiser, sample=sample, name="numbered")
    times = [3.0, 3.0]
    assert len(ReplayBuffer(subject, n_images=2, steps=None, seed=0).tensors["output"]) == 4
    times = [3.0, 2.0]
    with pytest.raises(InputError, match=r"argument 't'.*3\.0.*2\.0"):
        ReplayBuffer(subject, n_images=2, steps=None, seed=0)


# -- tuning ------------------------------------------------------------------------------------------------------------------------------


def test_tuning_lowers_the_held_out_loss_of_what_is_stored(subject, encodings):
    before = {name: parameter.clone() for name, parameter in subject.denoiser.state_dict().items()}
    originals = {name: {k: t.clone() for k, t in encoding.tensors.items()} for name, encoding in encodings.items()}
    tuned = tune(subject, encodings, SMALL)
    assert [step for step, _ in tuned.losses] == [0, 10, 20, 30]
    start, best = tuned.losses[0][1], min(loss for _, loss in tuned.losses)
    untuned = tuning.Tuned(encodings, {})
    assert held_out_loss(subject, untuned, SMALL) == pytest.approx(start, rel=1e-3)
    assert held_out_loss(subject, tuned, SMALL) == pytest.approx(best, rel=0.02)
    assert best < 0.8 * start
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


def test_codes_change_and_provenance_says_that_it_was_tuned(subject, encodings):
    settings = dataclasses.replace(SMALL, steps=10, code_every=2, code_share=0.05, trust_ratio=0.2, code_rate=0.1)
    tuned = tune(subject, encodings, settings)
    additive = {name: encoding for name, encoding in tuned.encodings.items() if encoding.format.kind == "additive"}
    assert any(not torch.equal(encoding.tensors["codes"], encodings[name].tensors["codes"]) for name, encoding in additive.items())
    assert all(encoding.provenance["tune_steps"] == 10 for encoding in additive.values())


def test_no_steps_return_what_came_in(subject, encodings):
    tuned = tune(subject, encodings, dataclasses.replace(SMALL, steps=0))
    assert tuned.others == {} and tuned.losses == []
    assert all(tuned.encodings[name] is encodings[name] for name in encodings)


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_a_diverging_rate_ends_early_and_returns_the_best(rate, subject, encodings):
    settings = dataclasses.replace(SMALL, steps=40, learning_rate=rate, check_every=2)
    tuned = tune(subject, encodings, settings)
    assert tuned.losses[-1][0] < 40
    assert all(not math.isfinite(loss) or loss > tuned.losses[0][1] for _, loss in tuned.losses[1:])
    assert all(equal(tuned.encodings[name], encodings[name]) for name in encodings), "the start was the best, so it is what comes back"
    parameters = dict(subject.denoiser.named_parameters())
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in tuned.others.items())


def test_tuning_repeats_for_a_seed(subject, encodings):
    settings = dataclasses.replace(SMALL, steps=6, check_every=3, code_every=2)
    first, again = tune(subject, encodings, settings), tune(subject, encodings, settings)
    other = tune(subject, encodings, dataclasses.replace(settings, seed=1))
    assert first.losses == again.losses and first.losses != other.losses
    assert all(equal(first.encodings[name], again.encodings[name]) for name in encodings)
    assert all(torch.equal(tensor, again.others[name]) for name, tensor in first.others.items())


@pytest.mark.parametrize(("field", "value"), [("steps", -1), ("batch_size", 0)])
def test_settings_that_make_no_sense(field, value, subject, encodings):
    with pytest.raises(InputError, match="tuning takes 0 or more steps of 1 or more images"):
        tune(subject, encodings, dataclasses.replace(SMALL, **{field: value}))


def test_a_tuned_folder_has_the_size_of_the_plan(subject, mixed_plan, store, tmp_path):
    tuned = apply(subject, mixed_plan, store, tmp_path / "tuned", tune_steps=4, settings=SMALL)
    assert len(tuned.losses) > 1
    plan = Plan.load(tmp_path / "tuned" / "quantization_plan.json")
    assert (tmp_path / "tuned" / "diffusion_pytorch_model.safetensors").stat().st_size == plan.size_bytes


# -- the parts of a step -----------------------------------------------------------------------------------------------------------------


def tunable(text: str, shape: tuple[int, ...] = (32, 24), groups: int = 1) -> _TunableLayer:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    return _TunableLayer(encode(weight, Format.parse(text), groups=groups), groups)


CASES = [("1x4g4", (32, 24)), ("2x3g5", (32, 24)), ("1x4g4hq", (32, 24)), ("1x4g4m", (8, 6, 3, 3)), ("1x4g9t", (8, 6, 3, 3))]


@pytest.mark.parametrize(("text", "shape"), CASES)
def test_the_tunable_weight_is_the_stored_one_and_goes_back(text, shape):
    layer = tunable(text, shape)
    torch.testing.assert_close(layer.weight(), layer.encoding.dequantize(), atol=1e-5, rtol=1e-5)
    assert equal(layer.encoded({}), layer.encoding)


def test_a_negative_scale_survives():
    encoding = encode(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), Format.parse("1x4g4"))
    scales = encoding.tensors["scales"] * torch.tensor([1.0, -1.0] * 4).half()
    negative = dataclasses.replace(encoding, tensors={**encoding.tensors, "scales": scales})
    torch.testing.assert_close(_TunableLayer(negative, 1).weight(), negative.dequantize(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("text", "shape"), CASES)
def test_gradients_of_the_tunable_weight(text, shape):
    layer = tunable(text, shape)
    target = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    (layer.weight() * target).sum().backward()
    step = 1e-2
    for parameter in (layer.stored, layer.log_scales):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append((layer.weight().double() * target).sum().item())
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=2e-3, abs=2e-2)


@pytest.mark.parametrize(("text", "shape"), CASES)
@pytest.mark.parametrize(("share", "trust"), [(0.02, 1e9), (0.3, 0.05), (1.0, 0.02)])
def test_a_v_step_keeps_within_its_bounds(text, shape, share, trust):
    layer = tunable(text, shape)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    settings = TuneSettings(code_share=share, trust_ratio=trust, code_rate=1.0)
    for _ in range(3):
        codes, weight = layer.codes.clone(), layer.weight().detach()
        n_changed = layer.v_step(gradient, settings)
        changed = (codes != layer.codes).any(2).sum().item()
        assert changed == n_changed <= max(1, int(share * codes[..., 0].numel()))
        assert (layer.weight() - weight).norm() <= trust * weight.norm() * (1 + 1e-5)


def test_a_v_step_goes_against_the_gradient():
    layer = tunable("1x4g4")
    goal = torch.randn(32, 24, generator=torch.Generator().manual_seed(5))
    goal[3] = 0
    settings = TuneSettings(code_share=0.2, trust_ratio=0.5, code_rate=0.3)
    distances = [(layer.weight() - goal).norm().item()]
    n_changed = 0
    for _ in range(10):
        n_changed += layer.v_step(layer.weight().detach() - goal, settings)
        distances.append((layer.weight() - goal).norm().item())
    assert n_changed > 0 and distances[-1] < 0.9 * distances[0]


def test_a_v_step_without_a_gradient_changes_nothing():
    layer = tunable("1x4g4")
    weight = layer.weight().detach()
    layer.v_step(torch.zeros(32, 24), TuneSettings(code_share=1.0))
    assert torch.equal(layer.weight(), weight)
