"""Models of stored records: a well-sealed record with a wrong field is refused in one line that names file, field and remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sedaq.errors import DamagedError, InputError
from sedaq.records.check import METADATA, RECORDS, complaint
from sedaq.reports import doctor
from sedaq.storage import SAFETENSORS_DTYPES, read_json, read_records, save_tensors, write_json

RUN = Path(__file__).parents[1] / "data" / "run-0.1.0"
OWN = ("kind", "schema", "sha256")


def content_of(name: str) -> dict[str, Any]:
    text = (RUN / name).read_text().splitlines()[0] if name.endswith(".jsonl") else (RUN / name).read_text()
    return {key: value for key, value in json.loads(text).items() if key not in OWN}


def test_every_kind_of_a_runs_file_has_a_model() -> None:
    without = {kind for kind, _ in doctor.RECORDS.values() if kind not in RECORDS and kind not in METADATA}
    assert without == {"images", "evidence"}, "whose metadata says nothing of them"


def test_models_know_the_dtypes_of_files() -> None:
    names = [str(dtype).removeprefix("torch.") for dtype in SAFETENSORS_DTYPES.values()]
    layer = {"name": "a", "role": "", "block": "", "kind": "linear", "shape": [2, 2], "groups": 1}
    outline = {
        "name": "",
        "fingerprint": "",
        "model_fingerprint": "",
        "prefixes": [""],
        "named_components": [],
        "layers": [layer],
        "weights": {"a": ""},
    }
    tensors = {f"t{i}": [name, [2]] for i, name in enumerate(names)} | {"a.weight": ["float32", [2, 2]]}
    assert complaint("outline", {**outline, "tensors": tensors}) is None
    assert "t0" in str(complaint("outline", {**outline, "tensors": {**tensors, "t0": ["float128", [2]]}}))


WRONG: list[tuple[str, str, Callable[[dict[str, Any]], object], str]] = [
    ("run.json", "run", lambda c: c["settings"].update(seed="0"), "field 'settings.seed' must be a valid integer, not '0'"),
    ("run.json", "run", lambda c: c["settings"].update(n_images=True), "field 'settings.n_images' must be a valid integer, not True"),
    ("run.json", "run", lambda c: c["settings"].update(n_images=10**12), "field 'settings.n_images' must be less than or equal to 1000000000"),
    ("run.json", "run", lambda c: c["subject"].pop("fingerprint"), "field 'subject.fingerprint' is missing"),
    ("run.json", "run", lambda c: c.update(settings=[1]), "field 'settings' must be a valid JSON object, not [1]"),
    ("predictor/fit.json", "fit", lambda c: c["predictions"][1].update(measured="many"), "field 'predictions.1.measured' must be a valid number, not 'many'"),
    ("predictor/fit.json", "fit", lambda c: c.update(tables={"../../x": "0"}), "must be a path inside of the folder"),
    ("predictor/additive.json", "predictor", lambda c: c["members"][0]["knots"].pop(), "must hold 3 numbers in each list, one a layer"),
    ("plans/2.815.json", "plan", lambda c: c["layers"]["blocks.0"].update(format=3), "field 'layers.blocks.0.format' must be a valid string, not 3"),
    ("plans/2.815.json", "plan", lambda c: c["layers"]["blocks.0"].update(activation_bits=8), "must have a field 'activation_scheme'"),
    ("plans/front.json", "front", lambda c: c["plans"][0]["plan"].pop("encoding"), "field 'plans.0.plan.encoding' is missing"),
    ("calibration/traits.636df4783ade1554.json", "traits", lambda c: c["layers"]["blocks.0"]["int8"].pop(), "must have at least 3 items"),
    ("menus/blocks.1.919489eccf6b35d9.json", "menu", lambda c: c["chosen"]["2.0"].update(error=None), "field 'chosen.2.0.error' must be a valid number, not None"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "harm", "said"), WRONG, ids=[f"{kind}-{i}" for i, (_, kind, *_) in enumerate(WRONG)])
def test_a_resealed_record_with_a_wrong_field(
    name: str, kind: str, harm: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    content = content_of(name)
    write_json(tmp_path / "a.json", kind, content)
    assert read_json(tmp_path / "a.json", kind) == content
    harm(content)
    write_json(tmp_path / "a.json", kind, content)
    with pytest.raises(DamagedError) as caught:
        read_json(tmp_path / "a.json", kind)
    message = str(caught.value)
    assert str(tmp_path / "a.json") in message and said in message and "\n" not in message and "; " in message.split(said)[1]


def test_keys_of_newer_versions_come_through(tmp_path: Path) -> None:
    content = content_of("run.json")
    content["settings"]["colour"] = "blue"
    write_json(tmp_path / "run.json", "run", {**content, "newer": {"deep": [1]}})
    assert read_json(tmp_path / "run.json", "run") == {**content, "newer": {"deep": [1]}}


def test_no_field_of_any_record_may_be_a_list_of_lists(tmp_path: Path) -> None:
    """Of every file of a run: whatever the field, it is refused, or of no model."""
    refused = 0
    for path in sorted(RUN.rglob("*.json")):
        body = json.loads(path.read_text())
        content = {key: value for key, value in body.items() if key not in OWN}
        for key in content:
            write_json(tmp_path / "a.json", body["kind"], {**content, key: [[content[key]]]})
            try:
                read_json(tmp_path / "a.json", body["kind"])
            except DamagedError as error:
                refused += 1
                assert "field '" in str(error) and (body["kind"] == "menu" or key in str(error))
    assert refused > 50


def test_metadata_of_tensors_is_checked(tmp_path: Path) -> None:
    from sedaq.aq.encoding import Encoding

    path = tmp_path / "a.safetensors"
    tensors = {"codes": torch.zeros(16, dtype=torch.uint8), "scales": torch.ones(4, dtype=torch.float16)}
    good = {"format": "int8", "shape": [4, 4], "error": 0.0, "provenance": {}}
    save_tensors(path, "encoding", tensors, good)
    assert Encoding.load(path).shape == (4, 4)
    for wrong, said in (
        ({"shape": 4}, "field 'shape' must be a valid list, not 4"),
        ({"shape": [10**12, 10**12]}, "field 'shape.0' must be less than 2147483648"),
        ({"shape": [4, 5]}, "stored tensors are"),
        ({"format": "9x9g9"}, "is out of range"),
        ({"error": "0"}, "field 'error' must be a valid number"),
    ):
        save_tensors(path, "encoding", tensors, {**good, **wrong})
        with pytest.raises(DamagedError) as caught:
            Encoding.load(path)
        assert said in str(caught.value) and "delete the file, it will be made again" in str(caught.value)


def test_a_run_whose_probes_are_another_runs_is_refused(tmp_path: Path) -> None:
    from sedaq.sensitivity.run import probe_journal

    for name, seed in (("one", 0), ("other", 1)):
        shutil.copytree(RUN, tmp_path / name)
        content = content_of("run.json")
        content["settings"]["seed"] = seed
        write_json(tmp_path / name / "run.json", "run", content)
        record = probe_journal(tmp_path / name).read()[-1]
        with probe_journal(tmp_path / name).writing() as write:
            write({**record, "key": name})
        assert probe_journal(tmp_path / name).read()[-1] == {**record, "key": name}
    shutil.copy(tmp_path / "one" / "probes.jsonl", tmp_path / "other" / "probes.jsonl")
    with pytest.raises(InputError, match=r"probes\.jsonl line \d+: is of another run, .* move the file away"):
        probe_journal(tmp_path / "other").read()
    assert len(read_records(tmp_path / "other" / "probes.jsonl", "probe")) == len(probe_journal(tmp_path / "one").read())
    states = {found.path: found.state for found in doctor.examine(tmp_path / "other").findings}
    assert states["probes.jsonl"] == "foreign"
