"""Closed forms of what is observed, and what a sampling shows of layers whose inputs are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sedaq import InputError, Subject
from sedaq.models.hessian import Hessian
from sedaq.models.loading import load
from sedaq.models.noise import image_noise
from sedaq.models.sampling import SamplingConfig
from sedaq.sensitivity.prior import observed as module
from sedaq.sensitivity.prior.observed import OBSERVED, block_around, effective_rank, observe, observed, of_inputs, of_weight, profile
from sedaq.sensitivity.run import Run
from sedaq.storage import read_json

from ...builders import dit, save_denoiser, unet
from .conftest import told_subject

SAMPLES = 400_000


def distribution(name: str) -> torch.Tensor:
    torch.manual_seed(0)
    if name == "normal":
        return torch.randn(SAMPLES, dtype=torch.float64)
    if name == "uniform":
        return 2 * torch.rand(SAMPLES, dtype=torch.float64) - 1
    if name == "laplace":
        return torch.distributions.Laplace(0.0, 1.0).sample((SAMPLES,)).double()
    return torch.randint(2, (SAMPLES,)).double() * 2 - 1


# E[x⁴] / E[x²]², and P(|x| > 3 root mean squares): Laplace's is exp(−3√2)
MOMENTS = {"normal": (3.0, 0.0026998), "uniform": (1.8, 0.0), "laplace": (6.0, math.exp(-3 * 2**0.5)), "signs": (1.0, 0.0)}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_are_those_of_known_distributions_at_any_size(name: str) -> None:
    kurtosis, outliers = MOMENTS[name]
    x = distribution(name)
    for size in (1.0, 1e-4):
        power, own, share = of_inputs(size * x)
        assert power == pytest.approx(size**2 * x.square().mean().item())
        assert own == pytest.approx(kurtosis, rel=0.05) and share == pytest.approx(outliers, abs=6e-4)
        found = of_weight((size * x * torch.arange(1, 5, dtype=torch.float64).repeat_interleave(SAMPLES // 4)).reshape(4, 10, -1))
        assert found["weight_kurtosis"] == pytest.approx(kurtosis, rel=0.05), "rows of other sizes are no outliers"
        assert found["weight_outliers"] == pytest.approx(outliers, abs=6e-4)


def test_zeros_have_no_moments() -> None:
    assert of_weight(torch.zeros(3, 4)) == {}
    half = torch.cat([torch.zeros(2, 8), torch.ones(2, 8)])
    assert of_weight(half) == {"weight_kurtosis": 1.0, "weight_outliers": 0.0}
    power, kurtosis, outliers = of_inputs(torch.zeros(5))
    assert power == 0 and math.isnan(kurtosis) and math.isnan(outliers)


def test_the_effective_rank_counts_equal_directions() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    for rank in (1, 3, 12):
        assert effective_rank(Hessian.of(7 * basis[:, :rank] @ basis[:, :rank].T)) == pytest.approx(rank / 12)
    eigenvalues = torch.tensor([4.0, 2.0, 1.0, *[0.0] * 9], dtype=torch.float64)
    assert effective_rank(Hessian.of((basis * eigenvalues) @ basis.T)) == pytest.approx(49 / 21 / 12)
    blocks = Hessian((torch.eye(4).expand(2, 4, 4), torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])).expand(2, 4, 4)))
    assert effective_rank(blocks) == pytest.approx(6 / 8), "blocks are parts of one matrix"
    assert math.isnan(effective_rank(Hessian.of(torch.zeros(3, 3))))


def test_profiles_of_known_powers() -> None:
    assert profile([1.0] * 8) == (0.0, 0.0)
    trend, variation = profile([math.exp(2 * step) for step in (0, 0, 1, 1, 2, 2, 3, 3)])
    assert trend == pytest.approx(3.0) and variation == pytest.approx(5**0.5 / 2)
    assert all(math.isnan(number) for powers in ([], [1.0], [1.0, 0.0]) for number in profile(powers))


# -- what a sampling shows ---------------------------------------------------------------------------------------------------------------


class Growing(nn.Module):
    """Layers in a block whose inputs grow by e a step, and whose outputs are known parts of the block's."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quarter, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.quarter.weight.data, self.second.weight.data = 0.25 * torch.eye(8), 0.5 * torch.eye(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.quarter(x) + self.second(x)  # 1.75 x

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.Block()])
        self.late = nn.Linear(8, 8)
        self.asleep = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, t: float) -> torch.Tensor:
        return self.late(self.blocks[0](x * torch.e**t))


def growing_subject() -> Subject:
    torch.manual_seed(0)
    denoiser = Growing()

    def sample(*, seed: int, start: int, n_images: int, steps: int | None = None) -> torch.Tensor:
        x = image_noise(seed, start, n_images, (1, 1, 8))
        for step in range(steps or 4):
            denoiser(x, step)
        return x.sigmoid()

    return Subject(denoiser, sample=sample, name="growing")


def identity(layer: object) -> Hessian:
    return Hessian.identity_of(layer.shape, layer.groups)  # type: ignore[attr-defined]


def test_norms_trends_order_and_tokens_of_a_denoiser_whose_inputs_are_known() -> None:
    found, why_not = observe(growing_subject(), SamplingConfig(steps=4), identity, seed=0)
    quarter, half, late = found["blocks.0.quarter"], found["blocks.0.second"], found["late"]
    assert quarter["output_norm"] == pytest.approx(0.25 / 1.75) and half["output_norm"] == pytest.approx(0.5 / 1.75)
    assert "output_norm" not in late, "it is in no block"
    assert quarter["input_trend"] == pytest.approx(3.0) and quarter["input_variation"] == pytest.approx(5**0.5 / 2)
    assert [quarter["order"], half["order"], late["order"]] == [0, 1, 2]
    assert quarter["tokens"] == 4, "one row a step"
    assert quarter["effective_rank"] == 1
    assert set(found["asleep"]) == {"weight_kurtosis", "weight_outliers", "effective_rank"}
    assert any("1 layers were not called while sampling, such as asleep" in line for line in why_not)
    assert [found["blocks.0.quarter"][f"sees_{kind}"] for kind in ("image", "time", "condition")] == [1, 1, 0]
    assert found["late"]["sees_image"] == 1, "the sum also holds the block's own input"


def test_each_layer_sees_what_reaches_it_by_no_other_layer() -> None:
    found, why_not = observe(told_subject(), SamplingConfig(steps=3), identity, seed=0)
    seen = {name: tuple(int(own[f"sees_{kind}"]) for kind in ("image", "time", "condition")) for name, own in found.items()}
    assert why_not == []
    assert seen == {
        "picture": (1, 0, 0),
        "clock": (0, 1, 0),
        "name": (0, 0, 1),
        "both": (1, 1, 0),
        "mixed": (0, 0, 0),
        "last": (0, 0, 0),
    }


def test_numbers_depend_on_the_seed_and_on_no_batch_size(tmp_path: Path) -> None:
    subject = load(str(save_denoiser(unet(), tmp_path / "unet")))
    first, again, other = (
        observe(subject, SamplingConfig(steps=2, batch_size=size), identity, seed=seed)[0] for size, seed in ((8, 0), (2, 0), (8, 1))
    )
    assert first == again != other


def test_diffusers_models_are_observed_without_a_gap(tmp_path: Path) -> None:
    for name, model in (("unet", unet(attends=True)), ("dit", dit(5))):
        subject = load(str(save_denoiser(model, tmp_path / name)))
        found, why_not = observe(subject, SamplingConfig(steps=2), identity, seed=0)
        assert why_not == [] and all(
            set(OBSERVED) - set(own) <= {"output_norm", "input_trend", "input_variation"} for own in found.values()
        )
        first = "conv_in" if name == "unet" else "pos_embed.proj"
        assert [layer for layer, own in found.items() if own["sees_image"]] == [first]
        assert any(own["sees_time"] for own in found.values())


def test_a_denoiser_that_cannot_be_asked_again_keeps_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise InputError("the denoiser takes arguments without names (*x)")

    monkeypatch.setattr(module, "seen_directly", refuse)
    found, why_not = observe(told_subject(), SamplingConfig(steps=2), identity, seed=0)
    assert why_not == ["what layers see directly is not known: the denoiser takes arguments without names (*x)"]
    assert all("sees_image" not in own and own["input_kurtosis"] > 1 for own in found.values())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("transformer_blocks.0.attn1.to_out.0", "transformer_blocks.0"),
        ("transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0"),
        ("down_blocks.1.resnets.0.conv1", "down_blocks.1.resnets.0"),
        ("down_blocks.1.downsamplers.0.conv", "down_blocks.1"),
        ("mid_block.lone", "mid_block"),
        ("conv_in", ""),
    ],
)
def test_a_layers_block_is_the_innermost_that_holds_others_too(name: str, block: str) -> None:
    from sedaq.models.layers import Layer

    paths = [
        "conv_in",
        "transformer_blocks.0.attn1.to_q",
        "transformer_blocks.0.attn1.to_out.0",
        "transformer_blocks.0.ff.net.0.proj",
        "transformer_blocks.0.ff.net.2",
        "down_blocks.1.resnets.0.conv1",
        "down_blocks.1.resnets.0.conv2",
        "down_blocks.1.downsamplers.0.conv",
        "mid_block.lone",
        "mid_block.other",
    ]
    assert block_around(name, [Layer(path, "", "", "linear", (1, 1)) for path in paths]) == block


# -- kept in the run ---------------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_what_was_observed_and_samples_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found, why_not = observed(run)
    (path,) = (run.folder / "calibration").glob("properties.*.json")
    assert read_json(path, "properties")["layers"] == found and why_not == []
    monkeypatch.setattr(module, "observe", lambda *_, **__: pytest.fail("sampled again"))
    assert observed(run) == (found, [])
    monkeypatch.undo()
    path.write_text(path.read_text().replace("input_trend", "input_bend"))
    assert observed(run) == (found, []), "a damaged file is made again"
