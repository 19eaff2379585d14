"""Assemblies of weights, and several processes that share the work."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sedaq.aq.activations.quantizer import Activation, ActivationQuantizers, attached
from sedaq.aq.formats import AS_IS
from sedaq.runtime.tasks import claimed
from sedaq.sensitivity.probing.assembly import Assembly
from sedaq.sensitivity.probing.measurer import Measurer, PlanTask
from sedaq.sensitivity.probing.prober import Measurement, Prober
from sedaq.sensitivity.run import Run
from sedaq.storage import read_records


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return {layer.name: run.subject.weight(layer.name).clone() for layer in run.subject.layers}


def test_only_layers_that_differ_are_touched_and_all_come_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, names = weights_of(run), [layer.name for layer in run.subject.layers]
    assembly = Assembly(run.subject, run.store)
    low = {name: run.menus[name][0].format for name in names}
    assert assembly.set(low) == 3
    loaded: list[str] = []
    get = run.store.get
    monkeypatch.setattr(run.store, "get", lambda layer, format: loaded.append(layer.name) or get(layer, format))
    other = {**low, names[1]: run.menus[names[1]][1].format}
    assert assembly.set(other) == 1 and loaded == [names[1]]
    assert assembly.set(other) == 0 and loaded == [names[1]]
    for name in names:
        expected = get(run.subject.layer(name), other[name]).dequantize()
        assert torch.equal(run.subject.weight(name), expected)
    assert assembly.set({**other, names[0]: AS_IS}) == 1
    assert torch.equal(run.subject.weight(names[0]), before[names[0]])
    assembly.restore()
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(run).items())


def test_an_encoding_that_is_not_there_is_made_from_full_precision(run: Run) -> None:
    names = [layer.name for layer in run.subject.layers]
    low = {name: run.menus[name][0].format for name in names}
    wanted = {name: run.menus[name][1].format for name in names}
    expected = {name: run.store.get(run.subject.layer(name), wanted[name]).dequantize() for name in names}
    run.store.task(run.subject.layer(names[2]), wanted[names[2]]).path.unlink()
    assembly = Assembly(run.subject, run.store)
    assembly.set(low)
    assembly.set(wanted)
    assert all(torch.equal(run.subject.weight(name), expected[name]) for name in names)


def test_a_measurer_measures_nothing_twice_and_leaves_full_precision(run: Run) -> None:
    before = weights_of(run)
    plans = [{name: menu[k].format for name, menu in run.menus.items()} for k in (0, 1, 0)]
    with Measurer(Prober(run)) as measurer:
        assert [measurer.is_stored(PlanTask(plan, 8)) for plan in plans] == [False] * 3
        first = list(measurer.in_order([PlanTask(plan, 8) for plan in plans]))
        assert [measurer.is_stored(PlanTask(plan, 8)) for plan in plans] == [True] * 3
    assert first[0].record == first[2].record != first[1].record
    records = [record for record in read_records(run.folder / "probes.jsonl", "probe") if record["n_images"] == 8]
    assert len(records) == 2
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(run).items())


def test_weights_come_back_when_a_measurement_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, prober = weights_of(run), Prober(run)
    plan = {name: menu[0].format for name, menu in run.menus.items()}
    prober.full_precision("probe", 8, 2)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prober, "_sample", fail)
    with pytest.raises(KeyboardInterrupt), Measurer(prober) as measurer:
        list(measurer.in_order([PlanTask(plan, 8)]))
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(run).items())


def test_other_purposes_keep_their_features(run: Run) -> None:
    plan = {name: menu[0].format for name, menu in run.menus.items()}
    prober = Prober(run)
    made = prober.measure(plan, purpose="verify", n_images=8)
    assert made.evidence is not None and {"pooled", "psnr", "agreement"} <= set(made.evidence)
    assert all(len(tensor) == 8 for tensor in made.evidence.values())
    read = Prober(run).measure(plan, purpose="verify", n_images=8)
    assert read.evidence is not None and read.record == made.record
    assert all(torch.equal(read.evidence[name], tensor) for name, tensor in made.evidence.items())


def test_a_plan_that_overflows_in_verification_is_known_and_not_measured_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {name: menu[0].format for name, menu in run.menus.items()}
    prober = Prober(run)
    prober.full_precision("verify", 8, run.settings.steps)
    sample = prober._sample
    monkeypatch.setattr(prober, "_sample", lambda *key, **how: sample(*key, **how) * float("nan"))
    made = prober.measure(plan, purpose="verify", n_images=8)
    assert made.evidence is None and all(math.isnan(metric.value) for metric in made.metrics.values())
    read = Prober(run)
    monkeypatch.setattr(read, "_sample", None)
    assert read.measure(plan, purpose="verify", n_images=8).record == made.record


@pytest.mark.parametrize("executor", ["serial", pytest.param("processes:2", marks=pytest.mark.slow)])
def test_inputs_are_rounded_while_a_plan_is_measured_and_only_of_layers_with_codes(
    executor: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [layer.name for layer in run.subject.layers]
    low = {name: run.menus[name][0].format for name in names}
    kept = {**low, names[0]: AS_IS}
    inputs = ActivationQuantizers({name: Activation(4) for name in names})
    tasks = [PlanTask(plan, 16, "verify") for plan in (low, kept, {name: AS_IS for name in names})]
    with Measurer(Prober(run), executor) as measurer:
        plain = list(measurer.in_order(tasks))
    with Measurer(Prober(run, inputs=inputs), executor) as measurer:
        assert [measurer.is_stored(task) for task in tasks] == [False, False, True], "nothing is rounded where nothing is coded"
        rounded = list(measurer.in_order(tasks))
    assert rounded[2].record == plain[2].record
    assert all(a.record["metrics"]["fid"] != b.record["metrics"]["fid"] for a, b in zip(plain[:2], rounded, strict=False))
    assert all(not module._forward_pre_hooks for module in run.subject.denoiser.modules())
    weights = {name: run.store.get(run.subject.layer(name), low[name]).dequantize() for name in names[1:]}
    some = inputs.of(set(names[1:]))
    prober = Prober(run, inputs=inputs)
    with run.subject.weights_replaced(weights), attached(run.subject.denoiser, *some.modules(run.subject.denoiser)):
        features = prober.extractor(prober._sample("verify", 16, run.settings.steps))
    torch.testing.assert_close(features.pooled, rounded[1].evidence["pooled"], atol=1e-4, rtol=1e-4)


def test_a_sampled_reference_is_kept_and_made_again_when_damaged(run: Run) -> None:
    run.settings = dataclasses.replace(run.settings, reference_images=200)
    prober = Prober(run)
    prober.run.subject.extractor = None  # so that what is shipped does not belong to it
    first, path = prober.reference, run.folder / "reference.safetensors"
    assert first.description == "200 full-precision images made with other noise"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    for _ in range(2):
        del prober.reference  # which a prober remembers
        assert prober.reference.fingerprint == first.fingerprint
    assert path.read_bytes() == whole


# -- executors ---------------------------------------------------------------------------------------------------------------------------


def tasks_of(run: Run) -> list[PlanTask]:
    plans = [{name: menu[min(k, len(menu) - 1)].format for name, menu in run.menus.items()} for k in (0, 1, 2, 0, 3)]
    return [PlanTask(plan, 8, purpose) for purpose in ("verify", "probe") for plan in plans]


def lines_of(run: Run) -> list[dict[str, Any]]:
    """The journal's first shard, but for the time that each measurement took."""
    return [{**record, "seconds": 0} for record in read_records(run.folder / "probes.jsonl", "probe")]


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    return Run.open(folder, subject=run.subject_argument)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A sum in torch depends on how many threads share it: each executor is given as many."""
    monkeypatch.setattr("sys.argv", ["pytest"])  # what a spawned interpreter would otherwise run again
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_several_processes_keep_what_one_does_to_the_bit(run: Run, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "other")
    found: dict[str, list[Measurement]] = {}
    for executor, each in (("serial", run), ("processes:2", other)):
        with Measurer(Prober(each), executor) as measurer:
            found[executor] = list(measurer.in_order(tasks_of(each)))
            again = dict(measurer.measure(tasks_of(each)))
        assert sorted(again) == list(range(10))
    assert lines_of(other) == lines_of(run) and len(lines_of(run)) == 16 + 8
    assert [path.name for path in other.folder.glob("*probes*")] == ["probes.jsonl"], "all shards are merged, all locks are gone"
    for one, two in zip(*found.values(), strict=True):
        assert one.metrics == two.metrics
        assert (one.evidence is None) == (two.evidence is None) == (one.record["purpose"] == "probe")
        assert all(torch.equal(two.evidence[name], tensor) for name, tensor in (one.evidence or {}).items())


@pytest.mark.slow  # tests/runtime/test_executors.py kills workers in every run
@pytest.mark.usefixtures("one_thread")
def test_what_a_killed_worker_was_at_is_measured_by_another(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other, fatal = copied(run, tmp_path / "other"), tmp_path / "fatal"
    monkeypatch.setenv("SAMPLING_IS_FATAL_ONCE", str(fatal))
    fatal.touch()
    tasks = [task for task in tasks_of(other) if task.purpose == "probe"]
    with Measurer(Prober(other), "processes:2") as measurer:
        list(measurer.measure(tasks))
    assert not fatal.exists() and "of a plan for 'probe': its worker process was killed by SIGKILL; it is tried again" in caplog.text
    with Measurer(Prober(run)) as measurer:
        list(measurer.measure(tasks))
    assert sorted(lines_of(other), key=str) == sorted(lines_of(run), key=str)


def test_of_two_commands_each_plan_is_measured_by_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (task for task in tasks_of(run)[5:7])
    other = Prober(Run.open(run.folder, subject=run.subject_argument))
    how = (first.formats, "probe", first.n_images, run.settings.steps)
    measured: list[str] = []
    sample = Prober.sample_and_measure
    monkeypatch.setattr(Prober, "sample_and_measure", lambda self, *task: measured.append(self.run.folder.name) or sample(self, *task))
    with Measurer(Prober(run)) as measurer:
        with claimed(run.folder / f"probes.{other.key(*how)}", wait=True):  # as the other command does while it is at the first plan
            measuring = measurer.measure([first, second])
            assert next(measuring)[0] == 1, "the first plan is left to the other command"
            made = other.sample_and_measure(*how)
            other.keep(made)
        index, found = next(measuring)
        assert index == 0 and found.record == made.record and next(measuring, None) is None
    assert len(measured) == 2
    assert not list(run.folder.glob(".probes.*.lock"))
    assert sorted(record["key"] for record in lines_of(run)[-2:]) == sorted([made.record["key"], Prober(run).key(second.formats, *how[1:])])


def test_first_come_those_that_are_stored(run: Run) -> None:
    tasks = tasks_of(run)[:3]
    with Measurer(Prober(run)) as measurer:
        list(measurer.measure(tasks[1:2]))
        assert [index for index, _ in measurer.measure(tasks)] == [1, 0, 2]
        assert [index for index, _ in measurer.measure(tasks)] == [0, 1, 2]


def test_a_plan_whose_features_are_damaged_is_measured_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    (task,) = tasks_of(run)[:1]
    with Measurer(Prober(run)) as measurer:
        (first,) = measurer.in_order([task])
        path = run.folder / "features" / f"{first.record['key']}.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-2])
        assert not measurer.is_stored(task)
        (again,) = measurer.in_order([task])
    assert f"{path}: damaged; the plan is measured again" in caplog.text
    assert again.metrics == first.metrics and path.read_bytes() == whole
