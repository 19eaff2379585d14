"""Folders and files that a user names: the earlier one stays until the new one is whole, and nothing of his is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sedaq.errors import InputError
from sedaq.outputs import check_out, csv_bytes, refuse_links, write_folder
from sedaq.storage import write_json


def test_an_earlier_folder_outlives_a_swap_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_folder(out, lambda folder: (folder / "a").write_text("earlier") and None)
    rename = Path.rename

    def fail_once_the_name_is_free(self: Path, target: Path) -> Path:
        if Path(target) == out and (self / "b").exists():
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once_the_name_is_free)
    with pytest.raises(InputError, match=r"out: cannot be written \(Input/output error\)"):
        write_folder(out, lambda folder: (folder / "b").write_text("later") and None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "a").read_text() == "earlier" and not (out / "b").exists()


def test_an_earlier_folder_is_whole_until_the_new_one_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write_folder(out, lambda folder: (folder / "a").write_text("earlier") and None)
    seen: list[list[str]] = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: (seen.append(sorted(path.name for path in out.iterdir())), rmtree(*a, **k)))
    write_folder(out, lambda folder: (folder / "b").write_text("later") and None)
    assert seen and all(names == ["b"] for names in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("content", ["my notes", '{"kind": "other"}', ""])
def test_a_file_of_somebody_elses_is_not_written_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(content)
    with pytest.raises(InputError, match="`out` .*notes.txt: exists, and sedaq did not write it"):
        check_out("out", tmp_path / "notes.txt", '"kind": "plan"')
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_out("out", tmp_path, '"kind": "plan"')


def test_our_own_file_and_a_new_place_are_free(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", "plan", {"x": 1})
    check_out("out", tmp_path / "plan.json", '"kind": "plan"')
    check_out("out", tmp_path / "not yet" / "there" / "plan.json", '"kind": "plan"')
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"], "nothing is left of the trial"


@pytest.mark.parametrize("path", ["/proc/x.json", "/dev/null/x.json", f"/tmp/{'n' * 300}.json"])
def test_places_that_cannot_be_written_are_refused_before_work(path: str) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        check_out("out", Path(path), "mark")


KILLED = """
import sys, time
from pathlib import Path
from sedaq import outputs

def slowly(*_):
    print("now", flush=True)
    time.sleep(60)

if sys.argv[2] == "filling":
    outputs.write_folder(Path(sys.argv[1]), slowly)
outputs.flush_folder = slowly
outputs._flush = lambda folder: None
outputs.write_folder(Path(sys.argv[1]), lambda folder: (folder / "b").write_text("later"))
"""


@pytest.mark.parametrize("moment", ["filling", "swapped"])
def test_what_a_killed_process_left_is_cleared_away(moment: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, lambda folder: (folder / "a").write_text("earlier") and None)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(out), moment], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"now\n"
        os.kill(process.pid, signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) > 1
    write_folder(out, lambda folder: (folder / "c").write_text("last") and None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and [path.name for path in out.iterdir()] == ["c"]


def test_a_folder_whose_swap_was_killed_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "a").write_text("earlier")

    def fail(folder: Path) -> None:
        assert (tmp_path / "out" / "a").read_text() == "earlier", "it is back before the new one is made"
        raise InputError("no")

    with pytest.raises(InputError):
        write_folder(tmp_path / "out", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_comes_up_while_the_new_one_is_made_stops_the_swap(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, lambda folder: (folder / "a").write_text("earlier") and None)

    def refuse() -> None:
        raise InputError("there is something new")

    with pytest.raises(InputError, match="something new"):
        write_folder(out, lambda folder: (folder / "b").write_text("later") and None, before_replacing=refuse)
    assert [path.name for path in out.iterdir()] == ["a"] and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_links_that_lead_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "plans").mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    refuse_links(tmp_path / "run")
    (tmp_path / "run" / "inside").symlink_to(tmp_path / "run" / "plans")
    refuse_links(tmp_path / "run")
    for name in ("probes.jsonl", "plans/front.json", ".probes.jsonl.lock"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
        with pytest.raises(InputError, match="is a link that leads out of .*; put what it leads to in its place"):
            refuse_links(tmp_path / "run")
        (tmp_path / "run" / name).unlink()


def test_formulas_in_tables_are_texts() -> None:
    table = pd.DataFrame({"name": ["=1+1", "@a", "-b", "c", None], "value": [-1.5, 0.0, 1.0, 2.0, 3.0]})
    assert csv_bytes(table).decode().splitlines() == ["name,value", "'=1+1,-1.5", "'@a,0.0", "'-b,1.0", "c,2.0", ",3.0"]
