"""Pipelines with several denoisers: each is counted, of the weights as of the configs alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import sedaq
from sedaq.cli.main import main
from sedaq.models.unloaded import architecture

from .families import saved

EXPERTS = ("transformer", "transformer_2")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("wan-experts", tmp_path_factory.mktemp("wan"))


@pytest.fixture
def configs(experts: Path, tmp_path: Path) -> Path:
    """What is left of the pipeline where only the configs of its denoisers were downloaded."""
    for name in ("model_index.json", *(f"{expert}/config.json" for expert in EXPERTS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(experts / name, tmp_path / name)
    return tmp_path


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_counts_of_each_add_up(experts: Path) -> None:
    found = sedaq.inspect(experts)
    assert found["by_component"].keys() == set(EXPERTS)
    for name in ("n_layers", "n_weights", "size_bytes"):
        assert sum(counts[name] for counts in found["by_component"].values()) == found[name]
    alone = sedaq.inspect(experts, components=["transformer_2"])
    assert alone["by_component"] == {} and alone["n_weights"] == found["by_component"]["transformer_2"]["n_weights"]


def test_configs_alone(experts: Path, configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = sedaq.inspect(experts)
    for path in (configs, configs / "model_index.json"):
        found = as_json(capsys, "--model-config", path)
        assert [layer["name"] for layer in found["layers"]] == [layer["name"] for layer in whole["layers"]]
        assert {name: of["n_weights"] for name, of in found["by_component"].items()} == {
            name: of["n_weights"] for name, of in whole["by_component"].items()
        }
    one = as_json(capsys, "--model-config", configs / "transformer_2" / "config.json")
    assert one == as_json(capsys, "--model-config", configs, "--components", "transformer_2")
    assert one["n_layers"] == whole["by_component"]["transformer_2"]["n_layers"]


def test_what_is_printed(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--model-config", str(configs)]) == 0
    printed = capsys.readouterr().out
    found = architecture(configs)
    assert printed.startswith(f"{len(found.layers)} layers")
    for name, part in zip(EXPERTS, found.parts.values(), strict=True):
        assert f"\n{name}: {len(part.layers)} layers, {sum(layer.n_weights for layer in part.layers):,} weights" in printed


def test_what_is_missing(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (configs / "transformer_2" / "config.json").unlink()
    assert main(["inspect", "--model-config", str(configs)]) == 2
    assert "transformer_2: has no config.json, and model_index.json names it as a denoiser" in capsys.readouterr().err
    assert main(["inspect", "--model-config", str(configs / "transformer" / "config.json"), "--components", "vae"]) == 2
    assert "--components: " in capsys.readouterr().err
