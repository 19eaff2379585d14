"""H is the mean of x xᵀ over exactly the vectors that the flattened weight multiplies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from sedaq.aq.encoder.encoder import encode, relative_error
from sedaq.aq.formats import Format
from sedaq.errors import InputError
from sedaq.models import hessian as hessian_module
from sedaq.models.calibration import SPREAD, calibrate, hessian_bytes, images_needed, input_columns, passes, split_by_steps, steps_needed
from sedaq.models.hessian import Hessian
from sedaq.models.layers import Layer, find_layers
from sedaq.models.loading import load
from sedaq.models.noise import image_noise, purpose_seed
from sedaq.models.sampling import SamplingConfig
from sedaq.models.subject import Subject

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "linear-tokens": (lambda: nn.Linear(6, 4), (2, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 7, 6)),
    "conv2d-1x1": (lambda: nn.Conv2d(3, 4, 1), (2, 3, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), padding=(1, 0, 0)), (2, 2, 4, 5, 3)),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 9, 8)),
    "patches": (lambda: nn.Conv2d(1, 8, 4, stride=4), (2, 1, 12, 12)),
    "dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=2), (2, 3, 9, 8)),
    "strided-dilated": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 3), padding=(0, 2)), (2, 3, 9, 8)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1), (2, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 5, 5)),
    "same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 5, 5)),
    "same-even": (lambda: nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 3)), (2, 3, 8, 8)),
    "valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 5, 5)),
    "reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 5)),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 5, 5)),
}


def of(module: nn.Module) -> Layer:
    return find_layers(nn.ModuleDict({"layer": module}))[0]


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


def test_the_flattened_weight_times_the_columns_is_the_layers_output(case) -> None:
    module, x = case
    layer = of(module)
    columns = input_columns(x, layer, module)
    assert columns.shape[0] == layer.groups and columns.shape[2] == layer.n_in
    weight = module.weight.flatten(1).reshape(layer.groups, -1, layer.n_in)
    product = torch.einsum("gti,goi->tgo", columns, weight).flatten(1)
    product = product + module.bias
    output = module(x)
    if layer.kind != "linear":
        output = output.movedim(1, -1)
    torch.testing.assert_close(product, output.reshape(product.shape), atol=1e-5, rtol=1e-5)


class Single(nn.Module):
    """One layer that sees the sampler's noise; its output is not used."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.layer = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def subject_of(denoiser: nn.Module, shape: tuple[int, ...]) -> Subject:
    """A sampler of two steps with the denoiser's input growing between them."""

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None, **_: object) -> torch.Tensor:
        x = image_noise(seed, start, n_images, shape)
        for step in range(steps or 2):
            denoiser(x * (1 + step))
        return torch.zeros(n_images, 1, 1, 1)

    return Subject(denoiser, sample=sample, name="single")


def brute_force(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Xᵀ X / n, column by column of X: what each weight is multiplied with is the output's derivative by it."""
    layer = of(module)
    total = torch.zeros(layer.groups, layer.n_in, layer.n_in, dtype=torch.float64)
    module, x = module.double(), x.double()
    columns = []
    per_group = layer.shape[0] // layer.groups
    with torch.no_grad():
        for column in range(layer.n_in):
            unit = torch.zeros(layer.shape[0], layer.n_in, dtype=torch.float64)
            unit[:, column] = 1
            module.weight.copy_(unit.reshape(layer.shape))
            module.bias.zero_()
            output = module(x)
            output = output if layer.kind == "linear" else output.movedim(1, -1)
            columns.append(output.reshape(-1, layer.groups, per_group)[:, :, 0])
    matrix = torch.stack(columns, 2).transpose(0, 1)
    total += matrix.transpose(1, 2) @ matrix / matrix.shape[1]
    return total


def test_h_is_the_mean_of_x_xt_over_tokens_images_and_steps(case) -> None:
    module, x = case
    subject = subject_of(Single(module), tuple(x.shape[1:]))
    ((_, hessian),) = calibrate(subject, subject.layers, n_images=40, sampling=SamplingConfig(steps=2), seed=5)
    noise = image_noise(purpose_seed(5, "calibration"), 0, 40, tuple(x.shape[1:]))
    expected = brute_force(module, torch.cat([noise, 2 * noise])).float()
    torch.testing.assert_close(hessian.blocks[0], expected, atol=1e-5, rtol=1e-5)
    assert hessian.groups == of(module).groups


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 16), nn.Linear(16, 20), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(input=self.second(self.first(x).relu()).relu())


@pytest.fixture
def several() -> Subject:
    torch.manual_seed(0)
    return subject_of(Several(), (12,))


def test_passes_under_a_memory_bound_give_the_same_h(several: Subject) -> None:
    whole = dict(calibrate(several, several.layers, n_images=40, memory_bytes=10**9))
    for bound in (1, 2000, 3000):
        split = list(calibrate(several, several.layers, n_images=40, memory_bytes=bound))
        assert [layer for layer, _ in split] == several.layers
        for layer, hessian in split:
            assert hessian.blocks[0].equal(whole[layer].blocks[0])


def test_each_pass_is_within_the_bound_or_a_single_layer(several: Subject) -> None:
    assert [hessian_bytes(layer) for layer in several.layers] == [4 * 144, 4 * 256, 4 * 400]
    groups = [[layer] for layer in several.layers]
    for bound in (1, 1600, 1650, 3000, 10**9):
        plan = passes(groups, bound)
        assert [group for part in plan for group in part] == groups
        assert all(len(part) == 1 or sum(hessian_bytes(group[0]) for group in part) <= bound for part in plan)
    assert [len(part) for part in passes(groups, 1650)] == [2, 1]
    assert len(passes(groups, 10**9)) == 1


def test_above_the_limit_h_is_block_diagonal_and_equal_inside_the_blocks(several: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {layer.name: h.blocks[0] for layer, h in calibrate(several, several.layers, n_images=20)}
    monkeypatch.setattr(hessian_module, "MAX_BLOCK", 8)
    for layer, hessian in calibrate(several, several.layers, n_images=20):
        edges = hessian_module.block_edges(layer.shape)
        assert len(hessian.blocks) == -(-layer.n_in // 8) == len(edges) - 1
        for block, a, b in zip(hessian.blocks, edges, edges[1:], strict=False):
            torch.testing.assert_close(block, whole[layer.name][:, a:b, a:b])
        assert hessian_bytes(layer) == 4 * sum((b - a) ** 2 for a, b in zip(edges, edges[1:], strict=False))


def test_a_layer_that_receives_nothing_has_the_identity_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Its weight may be read by another module, as those of Hunyuan-DiT's pooler are."""
    model = Single(nn.Linear(3, 3))
    model.unused = nn.Linear(5, 2)
    subject = subject_of(model, (3,))
    found = {layer.name: hessian for layer, hessian in calibrate(subject, subject.layers, n_images=2)}
    assert torch.equal(found["unused"].blocks[0], torch.eye(5).unsqueeze(0))
    assert "1 layers received no input while sampling and are encoded without calibration: unused" in caplog.text


def test_hooks_are_gone_afterwards_even_when_sampling_fails(several: Subject) -> None:
    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in several.denoiser.modules())

    dict(calibrate(several, several.layers, n_images=2))
    assert hooks() == 0

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    several.adapter.sample = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        dict(calibrate(several, several.layers, n_images=2))
    assert hooks() == 0


# -- weighting of timesteps --------------------------------------------------------------------------------------------------------------


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor | int | None = None) -> torch.Tensor:
        return self.layer(x)


def timed_subject(timesteps: dict[float, torch.Tensor]) -> Subject:
    """A sampler that shows the denoiser one input at each timestep; timesteps by position, by name, as numbers and for each image."""
    denoiser = Timed()

    def sample(*, n_images: int, **_: object) -> torch.Tensor:
        for place, (t, x) in enumerate(timesteps.items()):
            if place % 2:
                denoiser(x, t)
            else:
                denoiser(x, timestep=torch.full((len(x),), t))
        return torch.zeros(n_images, 1, 1, 1)

    return Subject(denoiser, sample=sample, name="timed")


@pytest.mark.parametrize(
    ("weighting", "weight"),
    [
        ("uniform", lambda t, x: 1.0),
        ("balanced", lambda t, x: 1 / x.square().mean()),
        ("early", lambda t, x: t / 900),
        ("late", lambda t, x: 1.05 - t / 900),
    ],
)
def test_timesteps_weigh_as_the_table_says(weighting: str, weight: Callable[[float, torch.Tensor], float]) -> None:
    inputs = {
        t: size * torch.randn(50, 6, generator=torch.Generator().manual_seed(int(t))) for t, size in ((900.0, 1), (500.0, 2), (0.0, 5))
    }
    subject = timed_subject(inputs)
    ((_, hessian),) = calibrate(subject, subject.layers, n_images=2, weighting=weighting)
    weights = {t: float(weight(t, x)) for t, x in inputs.items()}
    expected = sum(weights[t] * x.T @ x for t, x in inputs.items()) / sum(50 * weights[t] for t in inputs)
    torch.testing.assert_close(hessian.blocks[0][0], expected)


@pytest.mark.parametrize("weighting", ["uniform", "balanced"])
def test_inputs_that_are_all_zero_are_no_missing_inputs(weighting: str) -> None:
    subject = timed_subject({1.0: torch.zeros(3, 6)})
    ((_, hessian),) = calibrate(subject, subject.layers, n_images=2, weighting=weighting)
    assert not hessian.blocks[0].any()


@pytest.mark.parametrize("weighting", ["early", "late"])
def test_weights_by_timestep_need_a_denoiser_that_is_told_it(several: Subject, weighting: str) -> None:
    with pytest.raises(InputError, match=f"'{weighting}' needs a denoiser with an argument `timestep`; use uniform or balanced"):
        dict(calibrate(several, several.layers, n_images=2, weighting=weighting))


def test_an_unknown_weighting_is_refused(several: Subject) -> None:
    with pytest.raises(InputError, match="'loud' is unknown; choose one of uniform, balanced, early, late"):
        dict(calibrate(several, several.layers, n_images=2, weighting="loud"))


@pytest.mark.parametrize(
    ("timesteps", "steps", "needed"),
    [(None, 2, 20), (1000, 2, 20), (1000, 20, 20), (1000, 50, 50), (1000, None, None), (8, 2, 8), (8, 8, 8)],
)
def test_steps_of_calibration(several: Subject, timesteps: int | None, steps: int | None, needed: int | None) -> None:
    several.adapter.scheduler = timesteps and DDIMScheduler(timesteps)
    assert steps_needed(several, SamplingConfig(steps=steps)) == needed


def test_more_than_ten_steps_take_no_images_away() -> None:
    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        for _ in range(steps or 2):
            images = net(image_noise(seed, start, n_images, (1,))).reshape(n_images, 1, 2, 2).sigmoid()
        return images

    net = nn.Sequential(nn.Linear(1, 4))  # an image is one input vector a step
    subject = Subject(net, sample=sample, name="counted")
    assert [images_needed(subject, SamplingConfig(steps=steps)) for steps in (2, 8, 10, 50)] == [64, 32, 26, 26]


@pytest.mark.parametrize("spread", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 4, 20])
@pytest.mark.parametrize("n_images", [1, 2, 7, 34])
def test_parts_of_the_images_have_other_numbers_of_steps(n_images: int, steps: int, spread: float) -> None:
    parts = split_by_steps(n_images, steps, spread, most=22)
    assert sum(count for _, count in parts) == n_images and all(count > 0 for _, count in parts)
    found = [of_part for of_part, _ in parts]
    assert found == sorted(set(found)) and min(found) >= 1 and max(found) <= 22
    assert all((1 - spread) * steps - 0.5 <= of_part <= (1 + spread) * steps + 0.5 for of_part in found)
    assert len(parts) == 1 if spread == 0 or n_images == 1 else steps < 20 or len(parts) == min(8, n_images) or (1 + spread) * steps > 22
    assert split_by_steps(n_images, None, spread) == [(None, n_images)]


def test_a_spread_calibration_samples_every_image_once() -> None:
    called = []

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        called.append((steps, start, n_images))
        return net(image_noise(seed, start, n_images, (4,))).reshape(n_images, 1, 2, 2).sigmoid()

    net = nn.Sequential(nn.Linear(4, 4))
    subject = Subject(net, sample=sample, name="counted")
    dict(calibrate(subject, subject.layers, n_images=80, sampling=SamplingConfig(steps=10), spread=0.1, memory_bytes=10**9))
    assert called == [(9, 0, 20), (10, 20, 32), (10, 52, 8), (11, 60, 20)]


def test_layers_that_are_told_the_time_are_encoded_for_timesteps_that_no_sampling_visited() -> None:
    subject = load("mnist-unet")

    def seen_in(steps: int, spread: float = 0.0) -> dict[Layer, Hessian]:
        told = [subject.layer(f"time_embedding.linear_{number}") for number in (1, 2)]
        return dict(calibrate(subject, told, n_images=8, sampling=SamplingConfig(steps=steps), spread=spread))

    def errors(seen: dict[Layer, Hessian]) -> list[float]:
        weights = {layer: subject.weight(layer.name) for layer in seen}
        made = {layer: encode(weights[layer], Format.parse("1x8g4"), hessian).dequantize() for layer, hessian in seen.items()}
        return [relative_error(weights[layer], made[layer], others[layer]) for layer in seen]

    others = seen_in(57)
    few, many, spread = (errors(seen) for seen in (seen_in(6), seen_in(20), seen_in(20, SPREAD)))
    assert all(error > 4 * least for error, least in zip(few, spread, strict=True))
    assert all(error > 2 * least for error, least in zip(many, spread, strict=True))
