"""The comparison with other quantizers: what they store in bytes, the methods that are written here, and what is refused. No method has to be installed."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peers
import peers_environments
import pytest
import torch
from peers_methods import METHODS, Method, Setting, code_bits, grid, is_end, kept_bytes, settings_within
from peers_own import cluster, column_grids, gptq, on_grid
from tuned_rows import uniform_plan

from sedaq.aq.formats import AS_IS
from sedaq.aq.plans.menu import heuristic_menus
from sedaq.errors import SedaqError
from sedaq.models.hessian import Hessian
from sedaq.models.layers import Layer
from sedaq.models.loading import load

from .test_tuned_rows import rows_without_measuring

LINEAR = Layer("blocks.0.fc1", "feed-forward in", "blocks.0", "linear", (96, 384))
NARROW = Layer("blocks.0.fc2", "feed-forward out", "blocks.0", "linear", (50, 100))
CONVOLUTION = Layer("blocks.0.conv1", "residual conv 1", "blocks.0", "conv2d", (64, 32, 3, 3))
INPUT, OUTPUT = Layer("conv_in", "input", "", "conv2d", (32, 1, 3, 3)), Layer("unet.proj_out", "unet: output", "", "linear", (16, 96))
LAYERS = [INPUT, LINEAR, NARROW, CONVOLUTION, OUTPUT]


def size(method: str, layer: Layer, **options: object) -> int | None:
    layer_bytes = METHODS[method].layer_bytes
    assert layer_bytes is not None
    return layer_bytes(layer, options)


# -- bytes -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "linear", "narrow", "convolution"),
    [
        # 96·384 = 36,864 weights; 5,000; 64·288 = 18,432
        ("quanto", {"weights": "qint4"}, 18432 + 288 * 4, 2500 + 50 * 4, 9216 + 64 * 3 * 4),  # groups of 128; none; of 96
        ("quanto", {"weights": "qint2"}, 9216 + 288 * 4, 13 * 100 + 50 * 4, 4608 + 64 * 3 * 4),  # 50 rows take 13 bytes a column
        ("hqq", {"nbits": 2, "group_size": 64}, 9216 + 576 * 4, None, None),
        ("hqq", {"nbits": 3, "group_size": 64}, 58 * 64 * 4 + 576 * 4, None, None),  # 576 rows in 58 times ten
        ("torchao", {"bits": 3, "group_size": 32, "mapping": "symmetric"}, 13824 + 1152 * 2, None, 6912 + 576 * 2),
        ("torchao", {"bits": 2, "group_size": 32, "mapping": "asymmetric"}, 9216 + 1152 * 3, None, 4608 + 576 * 3),
        ("bitsandbytes", {"blocksize": 64}, 18432 + 576 + 3 * 4 + 4, 2500 + 79 + 4 + 4, None),
        ("gguf", {"type": "Q2_K"}, 144 * 84, None, 72 * 84),
        ("gguf", {"type": "Q4_0"}, 1152 * 18, None, 576 * 18),
        # groups of 16 and 8 channels, of 64 and 32, of 32 and 16
        ("sdnq", {"weights_dtype": "uint2", "group_size": 0}, 9216 + 96 * 24 * 4, None, 4608 + 64 * 4 * 9 * 4),
        ("sdnq", {"weights_dtype": "uint4", "group_size": 0}, 18432 + 96 * 6 * 4, None, 9216 + 64 * 9 * 4),
        ("sdnq-svd", {"weights_dtype": "uint2", "svd_rank": 4}, 9216 + 96 * 12 * 4 + 8 * 480, None, 4608 + 64 * 2 * 9 * 4 + 8 * 352),
        ("GPTQ", {"bits": 3, "group_size": 128}, 13824 + 288 * 2 + 108, 1875 + 50 * 2 + 19, 6912 + 192 * 2 + 72),
        ("k-means", {"bits": 3}, 13824 + 16, 1875 + 16, 6912 + 16),
    ],
)
def test_bytes_of_a_layer(method: str, options: dict[str, object], linear: int | None, narrow: int | None, convolution: int | None) -> None:
    assert [size(method, layer, **options) for layer in (LINEAR, NARROW, CONVOLUTION)] == [linear, narrow, convolution]


def test_quanto_has_many_scales_for_a_single_output() -> None:
    convolution, linear = Layer("a", "output", "", "conv2d", (1, 24, 3, 3)), Layer("b", "output", "", "linear", (1, 96))
    assert [size("quanto", layer, weights="qint4") for layer in (convolution, linear)] == [216 + 3 * 4, 96 + 96 * 4]


def test_gguf_blocks_have_the_bits_that_they_are_known_by() -> None:
    known = {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5, "IQ2_S": 2.5625, "IQ3_XXS": 3.0625}
    layer = Layer("a", "a", "", "linear", (256, 256))
    assert {name: 8 * (size("gguf", layer, type=name) or 0) / 256**2 for name in known} == known


def test_what_cannot_be_quantized_and_what_is_kept_counts_at_16_bits() -> None:
    setting = Setting("hqq", {"nbits": 4, "group_size": 64})
    convolutions = kept_bytes(INPUT) + kept_bytes(CONVOLUTION)
    assert setting.weight_bytes(LAYERS) == convolutions + kept_bytes(NARROW) + (18432 + 576 * 4) + (768 + 24 * 4)
    kept = Setting("k-means", {"bits": 2}, keep_ends=True)
    quantized = [LINEAR, NARROW, CONVOLUTION]
    assert [layer for layer in LAYERS if kept.takes(layer)] == quantized
    expected = kept_bytes(INPUT) + kept_bytes(OUTPUT) + sum(layer.n_weights // 4 + 8 for layer in quantized)
    assert kept.weight_bytes(LAYERS) == expected
    assert kept.name == "k-means 2 bits, ends kept"


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.dials])
def test_settings_of_equal_bytes_are_the_largest_within_them(method: str) -> None:
    for bits in (2.0, 3.0, 4.0):
        limit = math.floor(bits / 8 * sum(layer.n_weights for layer in LAYERS))
        found = settings_within(method, LAYERS, limit)
        assert len({setting.name for setting in found}) == len(found)
        for keep in (False, True):
            settings = {(setting := Setting(method, options, keep)).name: setting for options in METHODS[method].dials}
            sizes = {name: setting.weight_bytes(LAYERS) for name, setting in settings.items()}
            within = {name: size for name, size in sizes.items() if size is not None and size <= limit}
            longest = max((code_bits(settings[name].options) for name in within), default=0)
            long = {name: size for name, size in within.items() if code_bits(settings[name].options) == longest}
            largest = {name for among in (within, long) for name, size in among.items() if size == max(among.values())}
            assert {setting.name for setting in found if setting.keep_ends == keep} == largest


def test_both_of_two_equally_large_types_are_settings_of_equal_bytes() -> None:
    layer = Layer("a", "a", "", "linear", (256, 256))
    found = settings_within("gguf", [layer], math.ceil(3.5 / 8 * layer.n_weights))
    assert [setting.name for setting in found] == ["gguf IQ3_S", "gguf Q3_K", "gguf IQ3_S, ends kept", "gguf Q3_K, ends kept"]


def test_longer_codes_in_larger_groups_are_a_setting_of_equal_bytes_beside_the_largest() -> None:
    layer = Layer("a", "a", "", "linear", (256, 256))
    found = settings_within("hqq", [layer], math.ceil(4.01 / 8 * layer.n_weights))
    names = [setting.name for setting in found if not setting.keep_ends]
    assert names == ["hqq 2 bits, groups of 16", "hqq 3 bits, groups of 64"]


def test_a_keep_list_is_no_setting_where_it_changes_nothing() -> None:
    kept, without = (Setting("gguf", {"type": "Q4_K"}, keep) for keep in (True, False))
    odd, even = Layer("a", "input", "", "conv2d", (24, 1, 3, 3)), Layer("b", "b", "", "linear", (256, 256))
    assert without.keeps_more([odd, even]) and not kept.keeps_more([odd, even])  # blocks do not divide the input layer
    assert kept.keeps_more([Layer("a", "input", "", "linear", (256, 256)), even])
    assert Setting("sdnq-dynamic", {"weights_dtype": "uint2"}, True).keeps_more([odd, even])  # its bytes depend on the weights


@pytest.mark.parametrize(
    ("method", "options", "bits"),
    [
        ("GPTQ", {"bits": 3, "group_size": 128}, 3),
        ("hqq", {"nbits": 4, "group_size": 64}, 4),
        ("quanto", {"weights": "qint2"}, 2),
        ("sdnq", {"weights_dtype": "uint3", "group_size": 32}, 3),
        ("gguf", {"type": "IQ4_XS"}, 4),
        ("bitsandbytes", {"blocksize": 4096}, 4),
    ],
)
def test_codes_have_the_bits_of_their_type(method: str, options: dict[str, object], bits: int) -> None:
    assert method in METHODS
    assert code_bits(options) == bits


def test_settings_have_names_of_their_own_and_combine_all_options() -> None:
    assert grid(a=(1, 2), b=("x",)) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    names = [Setting(name, options).name for name, method in METHODS.items() for options in method.dials or method.defaults]
    assert len(names) == len(set(names)) > 40


# -- GPTQ and k-means --------------------------------------------------------------------------------------------------------------------


def correlated(n_in: int, seed: int = 0) -> torch.Tensor:
    """A well-conditioned H whose columns have much in common."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * n_in, n_in, generator=rng) + 2 * torch.randn(4 * n_in, 1, generator=rng)
    return x.T @ x / len(x)


def round_to_nearest(weight: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Every weight at the nearest point of its group's grid."""
    rows = weight.flatten(1)
    return on_grid(rows, *column_grids(rows, bits, group_size), bits).reshape(weight.shape)


def output_error(weight: torch.Tensor, found: torch.Tensor, h: torch.Tensor) -> float:
    error = (weight - found).flatten(1)
    return float((error @ h * error).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shape", [(12, 40), (8, 4, 3, 3)])
def test_gptq_rounds_to_nearest_where_inputs_are_independent(bits: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = round_to_nearest(weight, bits, 16)
    assert torch.equal(gptq(weight, Hessian.identity_of(shape), bits, 16), expected)
    assert len(expected.flatten(1)[0, :16].unique()) <= 2**bits


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_has_less_output_error_than_rounding_where_inputs_are_correlated(bits: int) -> None:
    weight, h = torch.randn(32, 64, generator=torch.Generator().manual_seed(2)), correlated(64)
    found = gptq(weight, Hessian.of(h), bits, 32)
    nearest = round_to_nearest(weight, bits, 32)
    assert output_error(weight, found, h) < 0.5 * output_error(weight, nearest, h)
    assert (weight - found).square().sum() > (weight - nearest).square().sum()


def test_gptq_takes_the_best_second_column_that_the_first_one_leaves() -> None:
    weight = torch.randn(40, 2, generator=torch.Generator().manual_seed(3))
    h = torch.tensor([[1.0, 0.9], [0.9, 2.0]])  # so that the second column is rounded first
    steps, zeros = column_grids(weight, 2, 2)
    found = gptq(weight, Hessian.of(h), 2, 2, damping=0.0)
    first = on_grid(weight, steps, zeros, 2)[:, 1]
    assert torch.equal(found[:, 1], first)
    for row in range(len(weight)):
        points = [(point - zeros[row, 0]) * steps[row, 0] for point in range(4)]
        errors = [output_error(weight[row : row + 1], torch.stack([point, first[row]])[None], h) for point in points]
        assert output_error(weight[row : row + 1], found[row : row + 1], h) == pytest.approx(min(errors), abs=1e-6)


def test_gptq_knows_the_inputs_of_each_group_of_a_convolution() -> None:
    weight = torch.randn(64, 48, 1, 1, generator=torch.Generator().manual_seed(4))
    h = torch.stack([correlated(48, seed) for seed in (5, 6)])
    h[1, :24, 24:], h[1, 24:, :24] = -h[1, :24, 24:], -h[1, 24:, :24]
    found, nearest = gptq(weight, Hessian.of(h), 3, 48), round_to_nearest(weight, 3, 48)
    for group in (0, 1):
        own = slice(32 * group, 32 * group + 32)
        rounded, chosen = (output_error(weight[own], values[own], h[group]) for values in (nearest, found))
        assert chosen < 0.5 * rounded < output_error(weight[own], found[own], h[1 - group])


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_what_trying_all_clusters_finds(seed: int) -> None:
    values = torch.randn(9, generator=torch.Generator().manual_seed(seed)).sort().values.double()
    found = cluster(values.reshape(3, 3).float(), 1).double().flatten()
    assert len(found.unique()) == 2

    def error(edges: tuple[int, ...]) -> float:
        parts = [values[a:b] for a, b in itertools.pairwise((0, *edges, len(values)))]
        return float(sum(((part - part.mean()) ** 2).sum() for part in parts))

    best = min(error((edge,)) for edge in range(1, len(values)))
    assert float(((found - values) ** 2).sum()) == pytest.approx(best, rel=1e-3)  # the codebook has 16 bits


def test_kmeans_keeps_few_values_as_they_are() -> None:
    weight = torch.tensor([[0.5, -0.25, 0.5], [1.0, -0.25, 1.0]])
    assert torch.equal(cluster(weight, 3), weight)


# -- rows ------------------------------------------------------------------------------------------------------------------------------


def test_a_uniform_plan_may_leave_its_ends_as_they_are(pipeline_folder: Path) -> None:
    subject = load(pipeline_folder)
    run: Any = SimpleNamespace(
        subject=subject, menus=heuristic_menus(subject), settings=SimpleNamespace(seed=0), store=SimpleNamespace(identity={})
    )
    compared = object.__new__(peers.Comparison)
    compared.run = run
    plain, kept = uniform_plan(run, 3.0), compared.uniform_but_for_ends(3.0)
    ends = {layer.name for layer in subject.layers if is_end(layer)}
    assert ends and all(kept.formats[name] == (AS_IS if name in ends else format) for name, format in plain.formats.items())
    assert kept.size_bytes > plain.size_bytes


def test_a_row_that_fails_is_told_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    compared = object.__new__(peers.Comparison)
    compared.rows, compared.failed = rows_without_measuring(), False
    compared.rows.rows["hqq"] = {"versions": {"hqq": "0"}}

    def refuse() -> Any:
        raise SedaqError("it stores 3 bytes of weights, where 2 were expected")

    compared.row("hqq", {"versions": {"hqq": "1"}}, refuse)
    assert compared.failed and "hqq" not in compared.rows.rows, "nor does that of another version stay"
    assert "hqq: it stores 3 bytes" in capsys.readouterr().err


# -- refusals ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without environments."""
    monkeypatch.setattr(peers_environments, "FOLDER", tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The last line that the command ends with exit code 2 on."""
    monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
    with pytest.raises(SystemExit) as raised:
        peers.main()
    assert raised.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_method_that_is_asked_for_and_not_installed_ends_with_2(
    nobody: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, monkeypatch, "mnist-dit", "GPTQ", "sdnq-svd")
    assert line == "sdnq-svd: is not installed; run `python benchmarks/peers_environments.py sdnq`"
    assert peers_environments.missing("k-means") is None


def test_a_method_of_another_version_is_refused_in_one_line(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = peers_environments.python_of("numpy")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    here = Path(sys.executable).parents[1]
    (python.parents[1] / "pyvenv.cfg").write_text((here / "pyvenv.cfg").read_text())
    (python.parents[1] / "lib").symlink_to(here / "lib")
    monkeypatch.setitem(METHODS, "numpy", Method({"numpy": "0.1", "not-a-package": "1.0"}, "", [{}]))
    why = peers_environments.missing("numpy")
    assert why is not None and why.startswith("numpy: has numpy ") and why.count("\n") == 0
    assert why.endswith(" where 0.1 is measured; run `python benchmarks/peers_environments.py numpy`")
    known = why.split()[3]
    monkeypatch.setitem(METHODS, "numpy", Method({"numpy": known, "not-a-package": "1.0"}, "", [{}]))
    assert peers_environments.missing("numpy") == ("numpy: lacks not-a-package 1.0; run `python benchmarks/peers_environments.py numpy`")
    monkeypatch.setitem(METHODS, "numpy", Method({"numpy": known}, "", [{}]))
    assert peers_environments.missing("numpy") is None


def test_an_unknown_method_ends_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no method zip; choose among sedaq, GPTQ" in refused(capsys, monkeypatch, "mnist-dit", "zip")


def test_a_model_that_was_not_trained_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEDAQ_CORPUS", str(tmp_path))
    assert refused(capsys, monkeypatch, "mnist-flux", "GPTQ") == (
        f"mnist-flux: there is no {tmp_path / 'mnist-flux' / 'model'}; run `python benchmarks/corpus.py mnist-flux --data DIR --only-train`"
    )
