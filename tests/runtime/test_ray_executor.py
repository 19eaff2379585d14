"""Actors of a Ray cluster: the same results as elsewhere, whatever becomes of the actors.

It takes an actor five to ten seconds to start on slow cores: what needs actors of its own is marked slow.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sedaq.errors import InputError, SedaqError, WorkerError
from sedaq.runtime import ray_executor
from sedaq.runtime.executors import parse_executor
from sedaq.runtime.ray_executor import QUIET, Ray, joined

sys.path.append(str(Path(__file__).parent))
from worker_functions import (
    OpensAndCounts,
    OpensHereOnly,
    call,
    describe,
    describe_slowly,
    die_at_one,
    die_the_first_time,
    fail_at_one,
    slow_square,
    unsendable,
)

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster with two slots that this process has joined, so that "ray:auto" uses it."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # where actors find worker_functions
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "object_store_memory": 100 << 20})
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def cluster(nodes: Any) -> Any:
    import ray

    return ray


def alive(ray: Any) -> list[Any]:
    """Actors that have not ended."""
    return [actor for actor in ray._private.state.actors().values() if actor["State"] != "DEAD"]


class TestOnePool:
    """It takes seconds to start actors: these all use the same, which call what they are given."""

    @pytest.fixture(scope="class")
    def run(self, nodes: Any) -> Iterator[Callable[[Sequence[Any]], Iterator[tuple[Any, Any]]]]:
        with Ray().workers(call, name=lambda item: f"item {item.args[-1]}") as run:
            yield run

    @pytest.mark.parametrize("count", [0, 1, 7])
    def test_results_are_those_of_other_executors(self, run: Any, count: int) -> None:
        found = [(item.args[0], answer) for item, answer in run([partial(describe, item) for item in range(count)])]
        assert sorted((item, answer["square"]) for item, answer in found) == [(item, item**2) for item in range(count)]
        processes = {answer["process"] for _, answer in found}
        assert os.getpid() not in processes and len(processes) <= 2, "one a slot"
        assert {answer["threads"] for _, answer in found} <= {1}

    def test_exceptions_come_through_as_themselves(self, run: Any, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="^layer x: cannot be$") as caught:
            list(run([partial(fail_at_one, tmp_path, item) for item in (1, 2)]))
        assert type(caught.value) is InputError
        assert sorted(answer for _, answer in run([partial(fail_at_one, tmp_path, item) for item in (3, 4)])) == [3, 4]

    def test_what_a_killed_actor_was_at_is_done_by_another(self, run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert sorted(answer for _, answer in run([partial(die_the_first_time, tmp_path, 1), partial(slow_square, 3)])) == [1, 9]
        assert "item 1: its worker process died" in caplog.text and "it is tried again" in caplog.text
        assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records)

    @pytest.mark.slow
    def test_an_item_that_kills_every_actor_is_named_when_all_else_is_done(self, run: Any, tmp_path: Path) -> None:
        with pytest.raises(WorkerError, match=r"^item 1: its worker process died \(.*\), 3 times; all else is done and kept"):
            list(run([partial(die_at_one, tmp_path, item) for item in (0, 1, 2, 3)]))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "3"]

    def test_an_answer_that_cannot_be_sent_is_an_error_and_not_a_wait(self, run: Any) -> None:
        with pytest.raises(SedaqError, match="cannot be sent"):
            list(run([partial(unsendable, 1)]))

    def test_a_caller_that_does_not_want_the_rest(self, run: Any) -> None:
        first = next(run([partial(slow_square, item) for item in range(50)]))
        assert first[1] == first[0].args[0] ** 2
        assert sorted(answer for _, answer in run([partial(slow_square, item) for item in (300, 301)])) == [90000, 90601], (
            "no answer is another's"
        )


@pytest.mark.slow
def test_the_function_is_opened_once_by_each_actor(nodes: Any, tmp_path: Path) -> None:
    with Ray().workers(OpensAndCounts(tmp_path)) as run:
        assert sorted(result for _, result in run(range(6))) == list(range(6))
        list(run(range(6)))
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


@pytest.mark.slow
def test_a_function_that_cannot_be_opened_elsewhere_says_why(nodes: Any) -> None:
    with pytest.raises(InputError, match="opens nowhere else"), Ray().workers(OpensHereOnly(os.getpid())) as run:
        list(run([1, 2]))


def test_actors_end_with_the_block(cluster: Any) -> None:
    with Ray().workers(describe) as run:
        list(run(range(4)))
        assert alive(cluster)
    deadline = time.monotonic() + 10
    while alive(cluster):
        assert time.monotonic() < deadline, "an actor lives on"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_node_that_joins_is_used(cluster: Any, nodes: Any) -> None:
    """Actors that the cluster has no room for wait for one."""
    found: set[int] = set()
    with Ray().workers(partial(describe_slowly, 0.2)) as run:
        results = run(range(1000))
        deadline = time.monotonic() + 60
        while len(found) < 2:
            assert time.monotonic() < deadline, "a slot is not used"
            found.add(next(results)[1]["process"])
        node = nodes.add_node(num_cpus=1, num_gpus=0, wait=False)
        try:
            deadline = time.monotonic() + 60
            while len(found) == 2:
                assert time.monotonic() < deadline, "the node is not used"
                found.add(next(results)[1]["process"])
        finally:
            nodes.remove_node(node)
        assert len([next(results) for _ in range(20)]) == 20, "and it may leave again"


@pytest.mark.slow
def test_an_actor_that_cannot_start_is_no_item_s_fault(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "_Server", _Unstartable)
    with (
        pytest.raises(WorkerError, match=r"no worker can be started on the Ray cluster, the last one died \(.*\); every node needs"),
        Ray().workers(describe) as run,
    ):
        list(run([1, 2]))


class _Unstartable(ray_executor._Server):
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
