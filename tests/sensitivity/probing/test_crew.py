"""Assemblies of weights, and several processes that share the work."""

from __future__ import annotations

import pytest
import torch

from sedaq.aq.activations.quantizer import Activation, ActivationQuantizers, attached
from sedaq.aq.formats import AS_IS
from sedaq.sensitivity.probing.assembly import Assembly
from sedaq.sensitivity.probing.crew import Crew, Job
from sedaq.sensitivity.probing.prober import Prober
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


def test_a_crew_measures_nothing_twice_and_leaves_full_precision(run: Run) -> None:
    before = weights_of(run)
    plans = [{name: menu[k].format for name, menu in run.menus.items()} for k in (0, 1, 0)]
    with Crew(Prober(run)) as crew:
        assert [crew.is_stored(Job(plan, 8)) for plan in plans] == [False] * 3
        first = list(crew.measure([Job(plan, 8) for plan in plans]))
        assert [crew.is_stored(Job(plan, 8)) for plan in plans] == [True] * 3
    assert first[0].record == first[2].record != first[1].record
    records = [record for record in read_records(run.folder / "probes.jsonl", "probe") if record["n_images"] == 8]
    assert len(records) == 2
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(run).items())


def test_weights_come_back_when_a_measurement_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, prober = weights_of(run), Prober(run)
    plan = {name: menu[0].format for name, menu in run.menus.items()}
    prober.full_precision("probe", 8, 2)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prober, "_sample", fail)
    with pytest.raises(KeyboardInterrupt), Crew(prober) as crew:
        list(crew.measure([Job(plan, 8)]))
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


@pytest.mark.parametrize("workers", [1, 2])
def test_inputs_are_rounded_while_a_plan_is_measured_and_only_of_layers_with_codes(workers: int, run: Run) -> None:
    names = [layer.name for layer in run.subject.layers]
    low = {name: run.menus[name][0].format for name in names}
    kept = {**low, names[0]: AS_IS}
    inputs = ActivationQuantizers({name: Activation(4) for name in names})
    jobs = [Job(plan, 16, "verify") for plan in (low, kept, {name: AS_IS for name in names})]
    with Crew(Prober(run), workers) as crew:
        plain = list(crew.measure(jobs))
    with Crew(Prober(run, inputs=inputs), workers) as crew:
        assert [crew.is_stored(job) for job in jobs] == [False, False, True], "nothing is rounded where nothing is coded"
        rounded = list(crew.measure(jobs))
    assert rounded[2].record == plain[2].record
    assert all(a.record["metrics"]["fid"] != b.record["metrics"]["fid"] for a, b in zip(plain[:2], rounded, strict=False))
    assert all(not module._forward_pre_hooks for module in run.subject.denoiser.modules())
    weights = {name: run.store.get(run.subject.layer(name), low[name]).dequantize() for name in names[1:]}
    some = inputs.of(set(names[1:]))
    prober = Prober(run, inputs=inputs)
    with run.subject.weights_replaced(weights), attached(run.subject.denoiser, *some.modules(run.subject.denoiser)):
        features = prober.extractor(prober._sample("verify", 16, run.settings.steps))
    torch.testing.assert_close(features.pooled, rounded[1].evidence["pooled"], atol=1e-4, rtol=1e-4)
