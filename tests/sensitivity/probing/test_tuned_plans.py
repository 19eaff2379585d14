"""Plans that are measured after a short tuning."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from sedaq.errors import InputError
from sedaq.models.trace import ReplayBuffer
from sedaq.sensitivity.probing import prober as prober_module
from sedaq.sensitivity.probing.measurer import Measurer, probe_task
from sedaq.sensitivity.probing.probe import probe_run
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.probing.probes import read_probes
from sedaq.sensitivity.probing.tuned_plans import TRAJECTORIES, short_tuning, tuned_plan
from sedaq.sensitivity.run import TUNED_PROBE, Run, probe_journal

STEPS = 4


def lowest(run: Run) -> dict:
    return {name: menu[0].format for name, menu in run.menus.items()}


def tuned_records(run: Run) -> list[dict]:
    found = [record for record in probe_journal(run.folder).read() if record["purpose"] == TUNED_PROBE]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in found]


def test_the_model_is_tuned_inside_and_whole_again_after(run: Run) -> None:
    before = {name: tensor.clone() for name, tensor in run.subject.denoiser.state_dict().items()}
    plain = {layer.name: run.store.get(layer, lowest(run)[layer.name]).dequantize() for layer in run.subject.layers}
    with tuned_plan(run, lowest(run), STEPS, None):
        inside = run.subject.denoiser.state_dict()
        assert all(not torch.equal(inside[f"{name}.weight"], weight) for name, weight in plain.items())
        biases = [name for name in before if name.endswith(".bias")]
        assert biases and all(not torch.equal(inside[name], before[name]) for name in biases)
    after = run.subject.denoiser.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_tuned_and_untuned_measurements_of_a_plan_are_told_apart(run: Run) -> None:
    n_before = len(read_probes(run))
    with Measurer(Prober(run)) as measurer:
        found = [m.record for m in measurer.in_order([probe_task(run, lowest(run), steps) for steps in (0, STEPS, 2 * STEPS)])]
    assert [record.get("tuned_steps") for record in found] == [None, STEPS, 2 * STEPS]
    assert len({record["key"] for record in found}) == 3 and len({record["plan_hash"] for record in found}) == 1
    assert len({record["metrics"]["feature_distance"]["value"] for record in found}) == 3
    assert len(read_probes(run)) == n_before, "fits of untuned plans do not see them"


def test_what_was_stopped_goes_on_to_the_bit(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run.folder, tmp_path / "other")
    other = Run.open(tmp_path / "other", subject=run.subject_argument)
    probe_run(run, n_configs=8, tuned_steps=STEPS)
    whole, tuned = prober_module.tuned_plan, []

    def stopping(*arguments):
        tuned.append(arguments)
        if len(tuned) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(prober_module, "tuned_plan", stopping)
    with pytest.raises(KeyboardInterrupt):
        probe_run(other, n_configs=8, tuned_steps=STEPS)
    assert len(tuned_records(other)) == 2
    probe_run(other, n_configs=8, tuned_steps=STEPS)
    assert len(tuned) == 3 + 6, "what was measured is not measured again"
    own = [{**record, "run": ""} for record in tuned_records(run)]
    assert [{**record, "run": ""} for record in tuned_records(other)] == own and len(own) == 8


def test_trajectories_are_recorded_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []
    real = ReplayBuffer.record.__func__
    monkeypatch.setattr(ReplayBuffer, "record", classmethod(lambda cls, *a, **how: recorded.append(a) or real(cls, *a, **how)))
    probe_run(run, n_configs=3, design="layer", tuned_steps=STEPS)
    assert len(recorded) == 2  # to learn from, and held out
    assert (run.folder / TRAJECTORIES / "trajectories.safetensors").exists()


def test_trajectories_of_another_model_are_refused(run: Run, tmp_path: Path) -> None:
    probe_run(run, n_configs=1, design="layer", tuned_steps=STEPS)
    path = Path(run.subject_argument.partition(":")[0])
    other_file = tmp_path / "other.py"
    other_file.write_text(path.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    other = Run.begin(f"{other_file}:make", tmp_path / "other-run", run.settings)
    shutil.copytree(run.folder / TRAJECTORIES, tmp_path / "other-run" / TRAJECTORIES)
    with (
        pytest.raises(InputError, match=r"replay buffer .*: was recorded from tiny .*pass another folder, or delete it"),
        tuned_plan(other, lowest(other), STEPS, None),
    ):
        pass


def test_a_fit_takes_the_steps_that_most_plans_have(run: Run) -> None:
    probe_run(run, n_configs=12, tuned_steps=STEPS)
    probe_run(run, n_configs=2, design="layer", tuned_steps=2 * STEPS)
    probes = read_probes(run, purpose=TUNED_PROBE)
    assert (len(probes), probes.tuned_steps) == (12, STEPS)
    others = read_probes(run, purpose=TUNED_PROBE, tuned_steps=2 * STEPS, at_least=2)
    assert (len(others), others.tuned_steps) == (2, 2 * STEPS), "a predictor is refitted to probes of its own steps"


def test_few_images_make_few_trajectories(run: Run) -> None:
    settings = short_tuning(run.settings, STEPS)
    assert (settings.n_images, settings.sampling_steps, settings.judged_images) == (16, 2, 0)
