"""Plans as settings of other libraries: bits are never fewer than the plan's, and the libraries read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sedaq
from sedaq.aq.export.settings import bits_of_layers, settings_for
from sedaq.aq.formats import Format
from sedaq.aq.plans.plan import Plan
from sedaq.cli.main import main
from sedaq.errors import InputError
from sedaq.models.subject import Subject


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linears = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.conv = nn.Conv2d(8, 8, 3)


FORMATS = ("1x4g4", "1x8g4", "2x6g4", "2x8g4", "int8", "asis")


@pytest.fixture
def subject() -> Subject:
    return Subject(Mixed(), sample=lambda **_: torch.zeros(1, 1, 1, 1), name="mixed")


@pytest.fixture
def plan(subject: Subject) -> Plan:
    formats = {f"linears.{i}": Format.parse(text) for i, text in enumerate(FORMATS)}
    return Plan.of(subject, {**formats, "conv": Format.parse("1x4g3")})


def test_bits_are_rounded_up(subject: Subject, plan: Plan) -> None:
    """1x8g4 has 2 bits of codes, and codebooks of a layer this small weigh as much again."""
    found = bits_of_layers(subject, plan, "torchao")
    assert "linears.5" not in found and "conv" not in found and found["linears.4"] == 8
    for name, bits in found.items():
        format = plan.formats[name]
        assert bits >= min(8, format.bits_per_weight((64, 64)) - 0.1), name
        assert format.kind == "int8" or bits < format.bits_per_weight((64, 64)) + 1
    quanto = bits_of_layers(subject, plan, "quanto")
    assert set(quanto.values()) <= {2, 4, 8} and all(quanto[name] >= bits for name, bits in found.items()) and "conv" in quanto


def test_what_is_written(subject: Subject, plan: Plan) -> None:
    config = settings_for(subject, plan, "torchao")
    assert config["_type"] == "FqnToConfig" and len(config["_data"]["fqn_to_config"]) == 5
    assert config["_data"]["fqn_to_config"]["linears.4"]["_data"]["weight_dtype"]["_data"] == "int8"
    assert settings_for(subject, plan, "quanto")["linears.4"] == {"weights": "qint8", "activations": "none"}
    with pytest.raises(InputError, match="`settings` 'gguf': choose one of torchao, quanto"):
        settings_for(subject, plan, "gguf")


def test_torchao_reads_it(subject: Subject, plan: Plan) -> None:
    config = pytest.importorskip("torchao.core.config").config_from_dict(settings_for(subject, plan, "torchao"))
    from torchao.quantization import quantize_

    before = [module.weight.detach().clone() for module in subject.denoiser.linears]
    quantize_(subject.denoiser, config, filter_fn=None)
    kinds = [type(module.weight).__name__ for module in subject.denoiser.linears]
    assert kinds == ["IntxUnpackedToInt8Tensor"] * 5 + ["Parameter"]
    errors = [
        (module.weight.dequantize() - old).norm() / old.norm() for module, old in zip(subject.denoiser.linears[:5], before, strict=False)
    ]
    assert errors[4] < 0.02 < errors[0]


def test_quanto_reads_it(subject: Subject, plan: Plan) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    wanted = settings_for(subject, plan, "quanto")
    for name, entry in wanted.items():
        quanto.quantize(subject.denoiser, weights=quanto.qtypes[entry["weights"]], include=name)
    assert quanto.quantization_map(subject.denoiser) == wanted


def test_the_verb(pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "cache"))
    sedaq.uniform_plan(pipeline_folder, sedaq.Budget(bits=3.0)).save(tmp_path / "plan.json")
    command = ["apply", str(pipeline_folder), str(tmp_path / "plan.json"), "--settings", "quanto", "--out"]
    assert main([*command, str(tmp_path / "quanto.json")]) == 0
    assert "rounded up from" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "quanto.json").read_text())["conv_in"]) == {"weights", "activations"}
    assert main([*command, str(tmp_path)]) == 2
