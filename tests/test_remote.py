"""Run folders at URLs: whoever opens one finds all that others have made, and nothing is lost or made twice."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from sedaq.cli.main import main
from sedaq.errors import InputError
from sedaq.models.sampling import SamplingConfig
from sedaq.remote import is_there, is_url, pull, pull_all, push, url_of
from sedaq.runtime.journal import Journal
from sedaq.runtime.tasks import Task, json_task
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.run import Run, probe_journal
from sedaq.sensitivity.settings import Settings
from sedaq.storage import append_record, local_folder, read_records, write_json

SETTINGS = Settings(n_images=8, sampling=SamplingConfig(steps=2), calibration_images=8, calibration_steps=2)
TINY = f"{Path(__file__).parent / 'data' / 'tiny.py'}:make"


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store in memory, and one in a folder, which other processes see, too."""
    yield f"memory://{tmp_path.name}/runs/one" if request.param == "memory" else f"file://{tmp_path}/store/one"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Go to a machine with a cache of its own."""

    def go(name: str) -> None:
        monkeypatch.setenv("SEDAQ_CACHE", str(tmp_path / "caches" / name))

    go("first")
    return go


def stored(url: str) -> dict[str, bytes]:
    files, root = fsspec.core.url_to_fs(url)
    return {name.removeprefix(root).lstrip("/"): files.cat_file(name) for name in files.find(root)}


# -- files -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected", [("s3://b/run", True), ("memory://x", True), ("runs/a", False), ("C:/runs", False), ("a:b", False)]
)
def test_urls_are_told_from_folders(text: str, expected: bool) -> None:
    assert is_url(text) == expected
    assert not is_url(Path(text))


def test_a_plain_folder_has_no_mirror(tmp_path: Path) -> None:
    assert local_folder(tmp_path) == tmp_path == local_folder(str(tmp_path)) and url_of(tmp_path) is None
    (tmp_path / "a").write_text("a")
    push(tmp_path / "a")
    pull_all(tmp_path)
    assert pull(tmp_path / "a") and is_there(tmp_path / "a") and not pull(tmp_path / "b") and not is_there(tmp_path / "b")


def test_what_is_written_on_one_machine_is_read_on_another(url: str, machine: Any) -> None:
    folder = local_folder(url)
    assert url_of(folder) == url and local_folder(f"{url}/") == folder
    write_json(folder / "menus" / "a.json", "menu", {"value": 1})
    write_json(folder / "plans" / "2.json", "plan", {"value": 2})
    assert stored(url).keys() == {"menus/a.json", "plans/2.json"}
    machine("second")
    other = local_folder(url)
    assert other != folder
    assert [path.name for path in other.rglob("*.json")] == ["2.json"], "what changes is fetched at once"
    assert is_there(other / "menus" / "a.json") and not (other / "menus" / "a.json").exists()
    assert pull(other / "menus" / "a.json") and (other / "menus" / "a.json").read_bytes() == stored(url)["menus/a.json"]
    assert [path for path in other.rglob("*") if path.name.startswith(".")] == []


def test_a_task_is_done_on_one_machine_for_all(url: str, machine: Any) -> None:
    def task(made: list[str], name: str) -> Task[dict[str, Any]]:
        return json_task("square", local_folder(url) / "squares" / "7.json", "square", lambda: made.append(name) or {"square": 49})  # type: ignore[func-returns-value]

    made: list[str] = []
    assert not task(made, "first").is_done and task(made, "first").result() == {"square": 49}
    machine("second")
    assert task(made, "second").is_done and task(made, "second").result() == {"square": 49} and made == ["first"]
    damaged = local_folder(url) / "squares" / "7.json"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert task(made, "second").result() == {"square": 49} and made == ["first", "second"]


def test_a_plan_that_is_written_anew_is_fetched_anew(url: str, machine: Any) -> None:
    write_json(local_folder(url) / "plans" / "2.json", "plan", {"value": 1})
    machine("second")
    write_json(local_folder(url) / "plans" / "2.json", "plan", {"value": 2})
    second = (local_folder(url) / "plans" / "2.json").read_bytes()
    machine("first")
    assert (local_folder(url) / "plans" / "2.json").read_bytes() == second


# -- journals ----------------------------------------------------------------------------------------------------------------------------


def keys_of(url: str) -> list[str]:
    return [record["key"] for record in Journal(local_folder(url) / "probes.jsonl", "event").read()]


def write(url: str, *keys: str) -> None:
    with Journal(local_folder(url) / "probes.jsonl", "event").writing() as append:
        for key in keys:
            append({"key": key})


def test_records_of_several_machines_are_all_there(url: str, machine: Any) -> None:
    write(url, "b", "a")
    machine("second")
    assert keys_of(url) == ["b", "a"], "in their order"
    write(url, "c")
    machine("first")
    write(url, "d")  # its own journal is put over that of the second
    for name in ("first", "second", "third"):
        machine(name)
        assert sorted(keys_of(url)) == ["a", "b", "c", "d"], name


def test_a_journal_that_a_killed_process_did_not_put_keeps_its_order(url: str, machine: Any) -> None:
    write(url, "b")
    folder = local_folder(url)
    append_record(folder / "probes.jsonl", "event", {"key": "a"})
    before = stored(url)["probes.jsonl"].split(b"\n")[0] + b"\n"
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/probes.jsonl", before)  # as if it had been killed before the last line was there
    assert keys_of(url) == ["b", "a"]


def test_a_second_writer_on_a_machine_has_no_shard_there(url: str, machine: Any) -> None:
    journal = Journal(local_folder(url) / "probes.jsonl", "event")
    journal._append(journal.shard(1), {"key": "x"})
    assert stored(url).keys() == {"probes.jsonl.d/x.json"} and keys_of(url) == ["x"]


# -- runs --------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A store in memory is one process's: nothing is forked."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def content_of(folder: Path, names: list[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [{**record, "seconds": 0} for record in probe_journal(folder).read()]


@pytest.mark.usefixtures("one_thread")
def test_a_run_at_a_url_is_that_in_a_folder(url: str, machine: Any, tmp_path: Path) -> None:
    probe(TINY, tmp_path / "plain", n_configs=6, settings=SETTINGS)
    probe(TINY, url, n_configs=6, settings=SETTINGS)
    there = stored(url)
    names = [str(path.relative_to(tmp_path / "plain")) for path in (tmp_path / "plain").rglob("*") if path.is_file()]
    assert {name for name in there if not name.startswith("probes.jsonl.d/")} == set(names)
    timed = {"probes.jsonl", *(name for name in names if name.startswith(("encodings/", "books/")))}
    assert all(there[name] == content for name, content in content_of(tmp_path / "plain", names).items() if name not in timed)
    machine("second")
    again = Run.open(url, subject=TINY)
    assert records_of(again.folder) == records_of(tmp_path / "plain")
    layer = again.subject.layers[0]
    for entry in again.menus[layer.name]:
        if entry.format.kind != "asis":
            assert again.store.holds(layer, entry.format)
    before = stored(url)
    probe(TINY, url, n_configs=6, settings=SETTINGS)
    assert stored(url) == before, "nothing is made or measured again"
    probe(TINY, url, n_configs=8, settings=SETTINGS)
    machine("first")
    assert len(records_of(Run.open(url, subject=TINY).folder)) == len(records_of(again.folder)) == 8


@pytest.mark.usefixtures("one_thread")
def test_processes_open_the_run_by_its_url(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pytest"])  # what a spawned interpreter would otherwise run again
    url = f"file://{tmp_path}/store/one"
    probe(TINY, url, n_configs=6, settings=SETTINGS, executor="processes:2")
    probe(TINY, tmp_path / "plain", n_configs=6, settings=SETTINGS)
    assert records_of(Run.open(url).folder) == records_of(tmp_path / "plain")
    assert read_records(tmp_path / "store" / "one" / "probes.jsonl", "probe") == read_records(local_folder(url) / "probes.jsonl", "probe")


@pytest.mark.usefixtures("one_thread")
def test_other_settings_are_refused_as_in_a_folder(url: str, machine: Any) -> None:
    probe(TINY, url, n_configs=1, settings=SETTINGS)
    machine("second")
    with pytest.raises(InputError, match="was begun with n_images = 8, not 16"):
        Run.begin(TINY, url, dataclasses.replace(SETTINGS, n_images=16))


@pytest.mark.usefixtures("one_thread")
def test_the_command_line_takes_urls(machine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"file://{tmp_path}/store/one"
    assert main(["probe", TINY, "--run", url, "--configs", "12", "--images", "8", "--steps", "2"]) == 0
    assert f"probes are in {url}; next: sedaq fit --run {url}" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "caches")
    assert main(["inspect", TINY, "--run", url]) == 0


@pytest.mark.parametrize(
    "url, said",
    [
        ("s3x://bucket/run", "cannot be reached (Protocol not known"),
        ("file:///proc/nothing/run", "/proc/nothing/run/run.json: cannot be reached"),
    ],
)
def test_urls_that_cannot_be_are_one_line(url: str, said: str, machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", TINY, "--run", url, "--configs", "1", "--images", "8", "--steps", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


# -- an object store -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One on a server of this machine, which all processes find."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("ENDPOINT_URL", f"http://{host}:{port}"),
        ("ACCESS_KEY_ID", "any"),
        ("SECRET_ACCESS_KEY", "any"),
        ("REGION", "us-east-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir(f"bucket-{port}")
    yield f"s3://bucket-{port}/runs/one"
    type(files).clear_instance_cache()  # the next server has another port
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "processes:2"])
def test_a_run_in_an_object_store(bucket: str, executor: str, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pytest"])  # what a spawned interpreter would otherwise run again
    probe(TINY, bucket, n_configs=6, settings=SETTINGS, executor=executor)
    probe(TINY, tmp_path / "plain", n_configs=6, settings=SETTINGS, executor=executor)
    machine("second")
    assert records_of(Run.open(bucket).folder) == records_of(tmp_path / "plain")
    before = stored(bucket)
    assert {f"probes.jsonl.d/{record['key']}.json" for record in records_of(tmp_path / "plain")} <= before.keys()
    probe(TINY, bucket, n_configs=6, settings=SETTINGS, executor=executor)
    assert stored(bucket) == before, "nothing is made or measured again"
