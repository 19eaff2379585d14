"""What counts as the same file after kills: everything but how long something took."""

from __future__ import annotations

from pathlib import Path

import torch
from kills import contents

from sedaq.storage import append_record, save_tensors, write_json


def write(folder: Path, *, seconds: float = 1.0, seed: int = 0, number: float = 2.0, plan: str = "a") -> Path:
    folder.mkdir()
    save_tensors(
        folder / "codes.safetensors", "encoding", {"codes": torch.tensor([1.0, number])}, {"seed": seed, "made": {"seconds": seconds}}
    )
    write_json(folder / "plan.json", "plan", {"plan": plan, "seconds": seconds})
    append_record(folder / "probes.jsonl", "probe", {"plan": plan, "seconds": seconds})
    return folder


def test_files_that_differ_in_times_are_the_same_and_no_others(tmp_path: Path) -> None:
    first = contents(write(tmp_path / "first"))
    assert set(first) == {"codes.safetensors", "plan.json", "probes.jsonl"}
    assert contents(write(tmp_path / "later", seconds=9.0)) == first
    for name, changed, differing in (
        ("tensor", {"number": 3.0}, {"codes.safetensors"}),
        ("header", {"seed": 1}, {"codes.safetensors"}),
        ("plan", {"plan": "b"}, {"plan.json", "probes.jsonl"}),
    ):
        found = contents(write(tmp_path / name, **changed))  # type: ignore[arg-type]
        assert {path for path in first if found[path] != first[path]} == differing
