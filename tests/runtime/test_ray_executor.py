"""Actors of a Ray cluster: the same results as elsewhere, whatever becomes of the actors."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sedaq.errors import InputError, SedaqError, WorkerError
from sedaq.runtime import ray_executor
from sedaq.runtime.executors import parse_executor
from sedaq.runtime.ray_executor import Ray, joined

sys.path.append(str(Path(__file__).parent))  # where actors find the module, too
from worker_functions import OpensAndCounts, OpensHereOnly, describe, die_at_one, die_the_first_time, fail_at_one, slow_square, unsendable

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A local cluster with two slots, which "ray:auto" joins."""
    import ray

    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=100 << 20)
    yield ray
    ray.shutdown()


def children(ray: Any) -> list[Any]:
    """Actors that are alive."""
    return [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_results_are_those_of_other_executors(cluster: Any, count: int) -> None:
    with Ray().workers(describe) as run:
        found = list(run(range(count)))
        again = list(run(range(count)))
    assert sorted((item, answer["square"]) for item, answer in found) == [(item, item**2) for item in range(count)]
    processes = {answer["process"] for _, answer in found}
    assert os.getpid() not in processes and len(processes) <= 2, "one a slot"
    assert {answer["threads"] for _, answer in found} <= {1}
    if count > 2:
        assert {answer["process"] for _, answer in again} <= processes | {answer["process"] for _, answer in found + again}


def test_the_function_is_opened_once_by_each_actor(cluster: Any, tmp_path: Path) -> None:
    with Ray().workers(OpensAndCounts(tmp_path)) as run:
        assert sorted(result for _, result in run(range(6))) == list(range(6))
        list(run(range(6)))
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


def test_exceptions_come_through_as_themselves(cluster: Any, tmp_path: Path) -> None:
    with Ray().workers(partial(fail_at_one, tmp_path)) as run:
        with pytest.raises(InputError, match="^layer x: cannot be$") as caught:
            list(run([1, 2]))
        assert type(caught.value) is InputError
        assert sorted(run([3, 4])) == [(3, 3), (4, 4)]


def test_what_a_killed_actor_was_at_is_done_by_another(cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Ray().workers(partial(die_the_first_time, tmp_path), name="item {}".format) as run:
        assert sorted(run([1, 2, 3])) == [(1, 1), (2, 2), (3, 3)]
    assert "item 1: its worker process died" in caplog.text and "it is tried again" in caplog.text
    assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records)


def test_an_item_that_kills_every_actor_is_named_when_all_else_is_done(cluster: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerError, match=r"^item 1: its worker process died \(.*\), 3 times; all else is done and kept"),
        Ray().workers(partial(die_at_one, tmp_path), name="item {}".format) as run,
    ):
        list(run([0, 1, 2, 3]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "3"]


def test_a_function_that_cannot_be_opened_elsewhere_says_why(cluster: Any) -> None:
    with pytest.raises(InputError, match="opens nowhere else"), Ray().workers(OpensHereOnly(os.getpid())) as run:
        list(run([1, 2]))


def test_an_answer_that_cannot_be_sent_is_an_error_and_not_a_wait(cluster: Any) -> None:
    with pytest.raises(SedaqError, match="cannot be sent"), Ray().workers(unsendable) as run:
        list(run([1, 2]))


def test_a_caller_that_does_not_want_the_rest(cluster: Any) -> None:
    with Ray().workers(slow_square) as run:
        first = next(run(range(50)))
        assert first[1] == first[0] ** 2
        assert sorted(run([300, 301])) == [(300, 90000), (301, 90601)], "no answer is taken for another's"


def test_actors_end_with_the_block(cluster: Any) -> None:
    with Ray().workers(describe) as run:
        list(run(range(4)))
        assert children(cluster)
    deadline = time.monotonic() + 10
    while children(cluster):
        assert time.monotonic() < deadline, "an actor lives on"
        time.sleep(0.05)


def test_a_node_that_joins_is_used(cluster: Any) -> None:
    """Actors that the cluster has no room for wait for one."""
    from ray.cluster_utils import Cluster  # noqa: F401  what the test stands on is part of Ray

    node = cluster._private.worker._global_node
    address = node.address
    extra: list[Any] = []

    def join() -> None:
        import subprocess

        time.sleep(1.0)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=1", "--num-gpus=0", "--block"]
        extra.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    thread = threading.Thread(target=join)
    thread.start()
    try:
        with Ray().workers(partial(slow_square, seconds=0.5)) as run:
            processes = {answer for _, answer in run(range(60))}
        assert len(processes) == 60
    finally:
        thread.join()
        for process in extra:
            process.send_signal(signal.SIGTERM)
            process.wait()


def test_an_actor_that_cannot_start_is_no_item_s_fault(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "_Server", _Unstartable)
    with (
        pytest.raises(WorkerError, match=r"no worker can be started on the Ray cluster, the last one died \(.*\); every node needs"),
        Ray().workers(describe) as run,
    ):
        list(run([1, 2]))


class _Unstartable:
    def __init__(self, function: bytes, threads: int) -> None:
        os._exit(1)


# -- names -------------------------------------------------------------------------------------------------------------------------------


def test_addresses_are_named_by_a_text() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        assert parse_executor("ray:auto") == Ray() and parse_executor(address) == Ray(address)


@pytest.mark.parametrize("text", ["ray", "ray:", "ray:2", "ray://", "ray://host", "ray://host:port", "ray:auto:10001", "ray://a b:1"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"executor .* is unknown; use 'serial', .*'ray:auto' or 'ray://HOST:PORT'"):
        parse_executor(text)


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match=rf"executor 'ray://127.0.0.1:{port}': nothing answers there \(.*refused\); give the host"):
        parse_executor(f"ray://127.0.0.1:{port}")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"executor 'ray:auto' needs the package ray \(.*\); pip install 'sedaq\[ray\]'"):
        parse_executor("ray:auto")


def test_a_process_belongs_to_one_cluster(cluster: Any) -> None:
    with pytest.raises(InputError, match=r"this process has joined another Ray cluster; call ray.shutdown\(\) first"):
        joined("ray://127.0.0.1:1")


def test_a_gpu_is_one_actor_s(cluster: Any) -> None:
    class Nodes:
        def __init__(self, *resources: dict[str, float]) -> None:
            self._nodes = [{"Alive": True, "Resources": each} for each in resources] + [{"Alive": False, "Resources": {"GPU": 9.0}}]

        def nodes(self) -> list[dict[str, Any]]:
            return self._nodes

    share = ray_executor._share(Nodes({"CPU": 32.0, "GPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}))
    assert (share.num_gpus, share.num_cpus, share.threads, share.slots) == (1, 4, 4, 9)
    share = ray_executor._share(Nodes({"CPU": 4.0}, {"CPU": 2.0}))
    assert (share.num_gpus, share.num_cpus, share.threads, share.slots) == (0, 1, 1, 6)
    share = ray_executor._share(Nodes({"GPU": 2.0}))
    assert (share.num_gpus, share.num_cpus, share.threads, share.slots) == (1, 0, 1, 2)
