"""A whole probe on other executors: menus, shared codebooks, encodings and measurements, to the bit what one process makes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from sedaq.runtime.ray_executor import QUIET
from sedaq.sensitivity.probing.probe import probe
from sedaq.sensitivity.run import Run
from sedaq.storage import load_tensors, read_json, read_records

from ..conftest import SETTINGS

TIMES = {"seconds": 0}  # what differs from run to run


def content_of(folder: Path) -> dict[str, Any]:
    """What the files of a run hold, but for the times that were taken."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [{**record, **TIMES} for record in read_records(path, "probe")]
    if path.parent.name == "encodings":
        tensors, metadata = load_tensors(path, "encoding")
        provenance = {**metadata["provenance"], **TIMES}
        return {name: tensor.tolist() for name, tensor in tensors.items()}, {**metadata, "provenance": provenance}
    return path.read_bytes()


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A sum in torch depends on how many threads share it: each executor is given as many."""
    monkeypatch.setattr("sys.argv", ["pytest"])  # what a spawned interpreter would otherwise run again
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two slots for workers, which "ray:auto" finds."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=2, num_gpus=0, object_store_memory=100 << 20, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@pytest.mark.slow  # tests/test_remote.py does it with processes in every run
@pytest.mark.usefixtures("one_thread")
def test_processes_make_what_one_makes(subject: str, tmp_path: Path) -> None:
    for name, executor in (("one", "serial"), ("two", "processes:2")):
        probe(subject, tmp_path / name, n_configs=8, settings=SETTINGS, executor=executor)
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")


@pytest.mark.usefixtures("one_thread")
def test_actors_make_what_one_makes(subject: str, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    probe(subject, "one", n_configs=8, settings=SETTINGS)
    made: list[str] = []
    monkeypatch.setattr("sedaq.aq.plans.store.encode_objective", lambda *_, **__: made.append("here"))
    probe(subject, "two", n_configs=8, settings=SETTINGS, executor="ray:auto")
    assert made == [], "encoded in this process"
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")
    before = read_json(Path("two/run.json"), "run")
    probe(subject, "two", n_configs=8, settings=SETTINGS, executor="ray:auto")
    assert read_json(Path("two/run.json"), "run") == before


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_workers_that_are_killed_all_the_time(tmp_path: Path) -> None:
    """Four workers, one of which is killed every 20 seconds: all is done, and equal."""
    ray = pytest.importorskip("ray")
    probe("mnist-dit", tmp_path / "one", n_configs=24, executor="serial")
    over = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not over.wait(20):
            workers = [p for p in psutil.Process().children(recursive=True) if "ray::_Server.answer" in " ".join(p.cmdline())]
            if workers:
                killed.append(workers[len(killed) % len(workers)].pid)
                os.kill(killed[-1], signal.SIGKILL)

    ray.init("local", num_cpus=4, num_gpus=0, log_to_driver=False, logging_level="ERROR")
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        start = time.monotonic()
        probe("mnist-dit", tmp_path / "four", n_configs=24, executor="ray:auto")
    finally:
        over.set()
        killer.join()
        ray.shutdown()
    assert len(killed) >= (time.monotonic() - start) // 60, "few workers were killed"
    assert content_of(tmp_path / "four") == content_of(tmp_path / "one")
    assert len(Run.open(tmp_path / "four").menus) > 30
