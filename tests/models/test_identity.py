"""What makes another model and what does not: weights and what its class is told, not words that nobody reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiTTransformer2DModel
from diffusers.configuration_utils import register_to_config

from sedaq import Budget, Run, SamplingConfig, load, uniform_plan
from sedaq.errors import InputError
from sedaq.models.loading import SHIPPED_FOLDER
from sedaq.storage import read_json, write_json


def edited(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.fixture
def dit(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED_FOLDER / "mnist-dit", tmp_path / "dit"))


@pytest.mark.parametrize("change", [{"a_new_option": None}, {"a_new_option": 3}, {"attention_bias": True, "dropout": 0.0}])
def test_what_the_class_does_not_know_or_is_at_its_default(change: dict[str, Any], dit: Path) -> None:
    before = load(dit).fingerprint
    assert load(edited(dit, **change)).fingerprint == before


def test_another_setting_is_another_model(dit: Path) -> None:
    before = load(dit).fingerprint
    assert load(edited(dit, norm_eps=1e-3)).fingerprint != before


def test_a_class_that_has_learnt_something_new(dit: Path) -> None:
    class Newer(DiTTransformer2DModel):
        @register_to_config
        def __init__(self, *, gained: float = 0.5, **known: Any) -> None:
            super().__init__(**known)

    from sedaq.models.components import essentials

    newer = Newer(**{name: value for name, value in load(dit).denoiser.config.items() if not name.startswith("_")})
    assert "gained" in newer.config and "gained" not in essentials(newer)


def test_words_in_a_text_encoders_config(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED_FOLDER / "digits-sd", tmp_path / "sd"))
    before = load(folder, components=("text_encoder",)).fingerprint
    edited(folder / "text_encoder", a_new_option=None)
    assert load(folder, components=("text_encoder",)).fingerprint == before


def test_plans_and_runs_of_earlier_versions_hold(dit: Path, tmp_path: Path) -> None:
    subject = load(dit)
    earlier = subject.earlier_fingerprints[0]
    assert earlier != subject.fingerprint
    plan = uniform_plan(subject, Budget(bits=3.0)).to_json()
    write_json(tmp_path / "plan.json", "plan", {**plan, "subject": {**plan["subject"], "fingerprint": earlier}})
    from sedaq import Plan

    Plan.load(tmp_path / "plan.json").validate(load(dit))
    run = Run(tmp_path / "run", dit, sampling=SamplingConfig(steps=2), images=8, calibration_images=8, calibration_steps=2)
    content = run._opened.identity
    content["subject"] |= {"fingerprint": earlier, "model_fingerprint": earlier}
    write_json(tmp_path / "run" / "run.json", "run", content)
    for again in (Run(tmp_path / "run", dit), Run(tmp_path / "run")):
        assert again.subject.fingerprint == earlier, "its files are named by it"
    assert read_json(tmp_path / "run" / "run.json", "run") == content
    with pytest.raises(InputError, match="was made for dit with fingerprint"):
        Run(tmp_path / "run", edited(dit, norm_eps=1e-3))
