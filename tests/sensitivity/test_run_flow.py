"""From probes to a predictor, on a subject so small that a probe takes milliseconds."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sedaq
from sedaq.aq.plans import store as store_module
from sedaq.aq.plans.plan import Plan
from sedaq.errors import InputError, SedaqError
from sedaq.models.sampling import SamplingConfig
from sedaq.progress import Record, listening
from sedaq.sensitivity.plan_encodings import store_for_plan
from sedaq.sensitivity.predictor.fitting import fit, load_predictor
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.probing.prober import Prober
from sedaq.sensitivity.probing.probes import MIN_PROBES, read_probes
from sedaq.sensitivity.run import Run
from sedaq.sensitivity.settings import Settings
from sedaq.storage import append_record, read_records, write_json

from .conftest import SETTINGS

pytestmark = pytest.mark.usefixtures("fast_fit")


def records_of(folder: Path) -> list[dict]:
    return read_records(folder / "probes.jsonl", "probe")


def rewrite(run: Run, edit) -> None:
    """Write all records anew, each changed by `edit(index, record)`."""
    records = records_of(run.folder)
    (run.folder / "probes.jsonl").unlink()
    for index, record in enumerate(records):
        append_record(run.folder / "probes.jsonl", "probe", edit(index, record))


# -- probing -----------------------------------------------------------------------------------------------------------------------------


def test_probes_are_paired_and_say_what_they_measured(probed: Path) -> None:
    records = records_of(probed)
    assert len(records) == 16 and len({record["key"] for record in records}) == 16
    menu = Run.open(probed).menus
    for record in records:
        promised = {"plan_hash", "layers", "seed", "start", "n_images", "steps", "extractor", "reference", "metrics", "seconds"}
        assert record.keys() >= promised
        assert (record["n_images"], record["steps"], record["purpose"]) == (16, 2, "probe")
        assert all(text in [str(entry.format) for entry in menu[name]] for name, text in record["layers"].items())
        assert all(len(metric["halves"]) == 2 and metric["se"] >= 0 for metric in record["metrics"].values())
    full = next(record for record in records if set(record["layers"].values()) == {"asis"})
    assert full["metrics"]["feature_distance"]["value"] == 0
    worst = records[0]  # uniform at the lowest rate
    assert worst["bits_per_weight"] < full["bits_per_weight"]
    assert worst["metrics"]["feature_distance"]["value"] > 0


def test_going_on_measures_nothing_twice(run: Run, subject: str) -> None:
    before = (run.folder / "probes.jsonl").read_bytes()
    seen: list[Record] = []
    with listening(seen.append):
        probe(subject, run.folder, n_configs=18, settings=SETTINGS)
    after = (run.folder / "probes.jsonl").read_bytes()
    assert after.startswith(before) and len(records_of(run.folder)) == 18
    probing = [record for record in seen if record.description == "probing"]
    assert [(r.done, r.total) for r in probing] == [(16, 18), (17, 18), (18, 18)]
    assert not [r for r in seen if r.description == "calibration"]
    encoding = [r for r in seen if r.description == "encoding"]
    assert len(encoding) == 1 and encoding[0].done == encoding[0].total


def test_a_last_line_cut_short_is_measured_again(run: Run, subject: str) -> None:
    path = run.folder / "probes.jsonl"
    whole = records_of(run.folder)
    path.write_bytes(path.read_bytes()[:-50])
    summary = fit(run).summary
    assert summary["n_probes"] == 15 and summary["notes"] == ["the last line of probes.jsonl was cut short and is left out"]
    probe(subject, run.folder, n_configs=16, settings=SETTINGS)
    again = records_of(run.folder)
    assert [{**record, "seconds": 0} for record in again] == [{**record, "seconds": 0} for record in whole]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"n_images": 24}, "n_images = 16, not 24"),
        ({"sampling": SamplingConfig(steps=3)}, "steps = 2, not 3"),
        ({"sampling": SamplingConfig(steps=2, guidance=2.0)}, "guidance = None, not 2.0"),
        ({"extractor": "inception"}, "extractor = None, not 'inception'"),
        ({"rates": (2.0, 4.0)}, "rates = [1.5, 2.0, 2.5, 3.0, 3.5, 4.0], not [2.0, 4.0]"),
        ({"effort": "full"}, "effort = 'fast', not 'full'"),
    ],
)
def test_other_settings_on_the_same_run_are_refused_by_name(run: Run, subject: str, change: dict, text: str) -> None:
    before = (run.folder / "run.json").read_bytes()
    with pytest.raises(InputError) as caught:
        probe(subject, run.folder, n_configs=1, settings=replace(SETTINGS, **change))
    assert str(caught.value).startswith(f"{run.folder / 'run.json'}: was begun with {text}; use the same, or another folder for `run` (")
    assert "executor, device" in str(caught.value), "what may change"
    assert (run.folder / "run.json").read_bytes() == before and len(records_of(run.folder)) == 16


@pytest.mark.slow
def test_two_workers_write_what_one_does(probed: Path, subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["probe"])  # what a spawned interpreter would otherwise run again
    probe(subject, tmp_path / "run", n_configs=6, settings=SETTINGS, executor="processes:2")
    for ours, theirs in zip(records_of(tmp_path / "run"), records_of(probed)[:6], strict=True):
        assert ours["layers"] == theirs["layers"] and ours["key"] == theirs["key"]
        for name, metric in theirs["metrics"].items():
            assert ours["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-3, abs=1e-5)


def test_workers_need_a_subject_that_they_can_load(subject: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`executor` 'processes:2' needs a subject that each worker can load by itself"):
        probe(sedaq.load(subject), tmp_path / "run", n_configs=3, settings=SETTINGS, executor="processes:2")


def test_settings_that_the_sampler_refuses_leave_no_run_behind(subject: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="guidance: tiny has no null class"):
        probe(subject, tmp_path / "run", n_configs=1, settings=replace(SETTINGS, sampling=SamplingConfig(steps=2, guidance=2.0)))
    assert list(tmp_path.iterdir()) == []
    probe(subject, tmp_path / "run", n_configs=1, settings=SETTINGS)
    assert len(records_of(tmp_path / "run")) == 1


# -- runs --------------------------------------------------------------------------------------------------------------------------------


def test_menus_are_measured_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probing measured them; opening the run again reads them, and an encoding for every entry is there."""

    def refuse(*_, **__):
        raise AssertionError("encoded again")

    monkeypatch.setattr(store_module, "encode_objective", refuse)
    monkeypatch.setattr(store_module, "fit_book", refuse)
    assert set(run.menus) == {layer.name for layer in run.subject.layers}
    for name, menu in run.menus.items():
        assert {entry.rate for entry in menu} <= {*SETTINGS.rates, 8.0, 32.0} and str(menu[-1].format) == "asis"
        assert all(run.store.get(run.subject.layer(name), entry.format).error >= 0 for entry in menu)
    run.fill_store()


def test_a_run_opens_from_another_folder(subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, function = subject.rpartition(":")
    monkeypatch.chdir(Path(path).parent)
    Run.begin(f"{Path(path).name}:{function}", tmp_path / "run", SETTINGS).write()
    monkeypatch.chdir(tmp_path)
    assert Run.open(tmp_path / "run").subject_argument == subject


def test_settings_stand_in_run_json_as_version_0_1_0_wrote_them() -> None:
    first = {"seed": 0, "n_images": 512, "steps": 10, "extractor": None, "reference": None, "guidance": None, "prompts": None}
    then = {"batch_size": None, "exclude": [], "rates": [1.5, 2.0, 2.5, 3.0, 3.5, 4.0], "effort": "fast", "calibration_images": 64}
    assert list(Settings(calibration_images=64).to_dict().items()) == list({**first, **then, "weighting": "uniform"}.items())
    wide = Settings(sampling=SamplingConfig(4, 2.0, width=16, negative_prompts=("a", "b"), batch_size=3), exclude=("x",))
    assert wide.to_dict()["negative_prompts"] == ["a", "b"] and "height" not in wide.to_dict()
    assert Settings.from_dict(json.loads(json.dumps(wide.to_dict())), batch_size=3) == wide


def test_a_batch_size_is_no_part_of_a_runs_identity(subject: str, tmp_path: Path) -> None:
    plain = Run.begin(subject, tmp_path / "plain", SETTINGS)
    begun = Run.begin(subject, tmp_path / "run", replace(SETTINGS, sampling=SamplingConfig(steps=2, batch_size=4)))
    begun.write()
    assert begun.store.identity == plain.store.identity
    opened = Run.open(tmp_path / "run")
    assert opened.settings.sampling.batch_size == opened.store.sampling.batch_size == 4 and opened.store.identity == plain.store.identity
    Run.begin(subject, tmp_path / "run", SETTINGS)  # another one is not refused


def test_a_run_of_version_0_1_0_with_a_batch_size_keeps_its_calibration(subject: str, tmp_path: Path) -> None:
    plain = Run.begin(subject, tmp_path / "run", SETTINGS)
    settings = {name: value for name, value in plain.identity["settings"].items() if name != "calibration_steps"}
    old = {**plain.identity, "settings": {**settings, "batch_size": 4}}
    write_json(tmp_path / "run" / "run.json", "run", old)
    for run in (
        Run.open(tmp_path / "run", subject=subject),
        Run.begin(subject, tmp_path / "run", replace(SETTINGS, calibration_steps=None)),
    ):
        assert run.store.calibration == {"seed": 0, "n_images": 8, "steps": 2, "weighting": "uniform", "batch_size": 4}
        assert run.identity == old


def test_a_run_of_a_subject_made_in_python_wants_it_again(subject: str, tmp_path: Path) -> None:
    made = sedaq.load(subject)
    Run.begin(made, tmp_path / "run", SETTINGS).write()
    with pytest.raises(InputError, match="its subject was made in Python; pass the Subject again"):
        Run.open(tmp_path / "run").subject.sample(seed=0, n_images=1)
    assert Run.open(tmp_path / "run", subject=made).subject is made


def test_a_run_refuses_a_subject_whose_weights_changed(run: Run, subject: str) -> None:
    changed = sedaq.load(subject)
    changed.denoiser.blocks[0].weight.data[0, 0] += 1
    with pytest.raises(InputError, match=r"was made for tiny with fingerprint \w{16}, the subject now has \w{16}; start a new run"):
        Run.open(run.folder, subject=changed)


def test_exclusions_reach_a_subject_from_a_file(subject: str, tmp_path: Path) -> None:
    begun = Run.begin(subject, tmp_path / "run", replace(SETTINGS, exclude=("blocks.1",)))
    assert [layer.name for layer in begun.subject.layers] == ["blocks.0", "blocks.2"]
    begun.write()
    assert [layer.name for layer in Run.open(tmp_path / "run").subject.layers] == ["blocks.0", "blocks.2"]
    with pytest.raises(InputError, match="was made in Python"):
        Run.begin(sedaq.load(subject), tmp_path / "other", replace(SETTINGS, exclude=("blocks.1",)))


def test_a_plan_finds_the_encodings_that_it_was_made_with(run: Run, subject: str, tmp_path: Path) -> None:
    formats = {name: menu[0].format for name, menu in run.menus.items()}
    plan = Plan.of(run.subject, formats, encoding=run.store.identity, measured={"fid": 1.0}, predicted={"fid": 1.0})
    same, store = store_for_plan(plan, subject, run.folder, tmp_path)
    assert same == plan and store.folder == run.folder
    for layer in run.subject.layers:
        assert store.get(layer, formats[layer.name]).dequantize().equal(run.store.get(layer, formats[layer.name]).dequantize())
    made, store = store_for_plan(plan, subject, None, tmp_path / "scratch")
    layer = run.subject.layers[0]
    assert made == plan and store.get(layer, formats[layer.name]).dequantize().equal(run.store.get(layer, formats[layer.name]).dequantize())
    other, _ = store_for_plan(plan, subject, run.folder, tmp_path, effort="full")
    assert other.measured is None and other.predicted is None and other.encoding["effort"] == "full"
    with pytest.raises(InputError, match="the plan's field 'encoding' lacks 'calibration_settings'; search again"):
        store_for_plan(replace(plan, encoding={}), subject, run.folder, tmp_path)


# -- fitting -----------------------------------------------------------------------------------------------------------------------------


def test_fit_explains_predicts_and_comes_back_equal(run: Run) -> None:
    fitted = fit(run)
    summary = fitted.summary
    assert summary["n_probes"] == 16 and -1 <= summary["spearman"] <= 1 and summary["notes"] == []
    assert len(summary["predictions"]) == 16 and summary["baselines"].keys() == summary["scores"].keys() - {"sedaq"}
    assert -1 <= summary["stability"]["least"] <= summary["stability"]["greatest"] <= 1
    loaded = load_predictor(run)
    choices = [{name: menu[i % len(menu)] for name, menu in run.menus.items()} for i in range(5)]
    for a, b in zip(fitted.predictor.predict(choices), loaded.predict(choices), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    table = (run.folder / "predictor" / "sensitivity.csv").read_text().splitlines()
    assert len(table) == 1 + sum(len(menu) for menu in run.menus.values())
    assert json.dumps(fit(run).summary, sort_keys=True) == json.dumps(summary, sort_keys=True)


def test_a_plan_counts_once_by_its_measurement_with_most_images(run: Run) -> None:
    before = read_probes(run)
    prober = Prober(run)
    formats = {name: menu[0].format for name, menu in run.menus.items()}
    more = prober.measure(formats, n_images=64)
    after = read_probes(run)
    assert len(after) == len(before) and after.full_precision == before.full_precision, "on the scale of the run's number of images"
    index = after.hashes.index(more.record["plan_hash"])
    assert after.labels.excess[index] == more.metrics["fid_excess"].value != before.labels.excess[index]
    assert more.metrics["fid_excess"].se < before.labels.se[index]


def test_metrics_of_which_more_is_better_turn_their_sign(run: Run) -> None:
    probes = read_probes(run, "psnr")
    assert probes.labels.excess.min() == 0 and (probes.labels.excess >= 0).all() and probes.full_precision == -100


def test_too_few_probes(run: Run) -> None:
    path = run.folder / "probes.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: MIN_PROBES - 1]))
    text = f"holds 11 probes with a finite fid, a fit needs at least {MIN_PROBES}; run `sedaq probe` with more `configs`"
    with pytest.raises(InputError, match=text):
        fit(run)
    assert not (run.folder / "predictor").exists()


@pytest.mark.parametrize("field, other", [("extractor", "inception:0"), ("reference", "photos:0")])
def test_mixed_probes(run: Run, field: str, other: str) -> None:
    rewrite(run, lambda i, record: {**record, field: other} if i == 7 else record)
    with pytest.raises(InputError, match=f"probes differ in field '{field}' .*{other}.*; keep one kind"):
        fit(run)


def test_probes_of_another_model_are_refused(run: Run) -> None:
    rewrite(run, lambda i, record: {**record, "plan_hash": "0" * 16} if i == 7 else record)
    with pytest.raises(InputError, match="field 'plan_hash' of probe 0{16} does not match this run; .* remove its line"):
        fit(run)


def test_a_plan_that_overflows_is_kept_as_null_and_left_out_with_a_note(run: Run, subject: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prober = Prober(run)
    formats = {name: menu[1].format for name, menu in run.menus.items()}
    sample, full = prober._sample, prober.full_precision("probe", 16, 2)
    monkeypatch.setattr(prober, "_sample", lambda *key, **how: sample(*key, **how) * float("nan"))
    prober._full_precision["probe", 16, 2] = full
    prober._records.clear()
    record = prober.measure(formats).record
    assert record["metrics"] == {name: {"value": None, "se": None, "halves": [None, None]} for name in ("fid", "fid_excess")}
    rewrite(
        run,
        lambda i, other: (
            other if other["plan_hash"] != record["plan_hash"] or other["metrics"]["fid"]["value"] is None else {**other, "purpose": "old"}
        ),
    )
    summary = fit(run).summary
    assert summary["n_probes"] == 15 and summary["notes"] == ["1 of 16 probes have no finite fid and are left out"]


def test_labels_that_are_all_equal(run: Run) -> None:
    equal = {"value": 2.5, "se": 0.1, "halves": [2.5, 2.5]}
    rewrite(run, lambda _, record: {**record, "metrics": {"fid": equal, "fid_excess": {**equal, "value": 0.0}}})
    with pytest.raises(InputError, match=r"all probes have fid 2\.5; there is nothing to learn"):
        fit(run)


def test_an_unknown_metric(run: Run) -> None:
    with pytest.raises(InputError, match="its probes have no metric 'beauty'; choose one of .*feature_distance, fid, "):
        fit(run, metric="beauty")


def test_a_run_without_a_predictor(run: Run) -> None:
    with pytest.raises(InputError, match="has no predictor; run `sedaq fit"):
        load_predictor(run)


def test_a_model_that_overflows_in_full_precision_is_refused_and_nothing_is_kept(run: Run) -> None:
    prober = Prober(run)
    formats = {name: menu[1].format for name, menu in run.menus.items()}
    with torch.no_grad():
        run.subject.denoiser.blocks[0].bias[0] = float("nan")
    with pytest.raises(SedaqError, match="subject tiny: its image 0 holds NaN or infinity"):
        prober.measure(formats, n_images=24)
    assert len(records_of(run.folder)) == 16
